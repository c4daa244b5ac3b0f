"""Padding that is counted as data.

Looks at: positions at the end of each sample that repeat the last one exactly, in every channel, as zeros do and what
layers make of them; and the moments with and without them.

Harm: padding pulls the mean towards its own value and the variance towards 0, by as much as sequences differ in length:
a batch of short and long ones normalizes them otherwise than one of equal ones, and evaluation has another share of
padding than training.

Remedy: a batch norm that takes a mask or lengths (``convert_`` to masked_batch_norm, and pass ``lengths``), or batches
of sequences of like length.

Threshold: a tenth of all positions, in numbers that differ from sample to sample, and moments that are a tenth of a
standard deviation apart beyond three standard errors. A warning along time; along the axes of images a note, since a
plain background looks alike.

Source: pytorch issue 70529; Multilingual_Text_to_Speech issue 81.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from steadynorm.doctor.compared import apart
from steadynorm.doctor.evidence import Evidence, Sighting
from steadynorm.doctor.finding import Finding, Remedy, Severity, at
from steadynorm.statistics import Moments

NEEDS = ("batches",)
SHARE, APART = 0.1, 0.1
_REMEDY = Remedy(advice="Use masked_batch_norm with lengths or a mask (convert_), or batches of like lengths.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    assert evidence.batches is not None
    for norm in evidence.batch_norms:
        seen = evidence.batches.sightings.get(norm.name, ())
        if not seen or norm.is_frozen or norm.kind == "masked_batch_norm":
            continue
        share = sum(each.padding.share for each in seen if each.padding is not None) / len(seen)
        distance = _distance(seen, norm.eps)
        if share > SHARE and distance > APART and any(each.padding and each.padding.ragged for each in seen):
            problem = (
                f"{100 * share:.0f} % of its positions look like padding (they repeat the last one), and move its "
                f"statistics by {distance:.2g} standard deviations."
            )
            severity = Severity.WARNING if len(seen[0].shape) == 3 else Severity.NOTE
            yield at(norm, severity, problem, _REMEDY, share=share, distance=distance)


def _distance(seen: Sequence[Sighting], eps: float) -> float:
    """Give how far padding moves the moments, beyond three standard errors of a batch's mean."""
    found = [
        apart(
            Moments(mean=each.mean, var=each.var, count=1),
            Moments(mean=each.padding.mean, var=each.padding.var, count=1),
            eps=eps,
        )
        for each in seen
        if each.padding is not None
    ]
    if not found:
        return 0.0
    errors = [float((each.mean_error / (each.var + eps)).mean()) for each in seen if each.samples > 1]
    error = math.sqrt(sum(errors) / len(errors) / len(seen)) if errors else 1.0
    return sum(found) / len(seen) - 3 * error

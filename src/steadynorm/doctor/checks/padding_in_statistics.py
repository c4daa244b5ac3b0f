"""Padding that counts as data.

Looks at: positions at the start and the end of each sample that repeat their neighbours exactly in every channel, as
zeros do, and zeros that layers have mapped; and the moments with and without them.

Harm: padding pulls the mean towards its own value and the variance towards 0. The effect depends on the lengths in the
batch: mixed lengths are normalized differently from equal ones, and evaluation has another fraction of padding than
training.

Remedy: a batch norm that takes a mask or lengths (``convert_`` to masked_batch_norm, and pass ``lengths``), or batches
of sequences of similar length.

Threshold: a tenth of all positions, in numbers that differ from sample to sample, and moments that are a tenth of a
standard deviation apart. A warning along time, and in images whose content ends in a straight line: at most a quarter
of the rows or columns next to the padding equals it. Otherwise a note, since a plain background looks the same: most of
the rows next to the margins of handwritten digits are background.

Source: pytorch issue 70529; Multilingual_Text_to_Speech issue 81.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.batch_evidence import Padding, Sighting
from steadynorm.doctor.compared import apart
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at
from steadynorm.statistics import Moments

NEEDS = ("batches",)
SHARE, APART, BACKGROUND = 0.1, 0.1, 0.25
_REMEDY = Remedy(advice="Use masked_batch_norm with lengths or a mask (convert_), or batches of similar lengths.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    assert evidence.batches is not None
    for norm in evidence.batch_norms:
        seen = evidence.batches.sightings.get(norm.name, ())
        found = [(each, each.padding) for each in seen if each.padding is not None]
        if not found or norm.is_frozen or norm.kind == "masked_batch_norm":
            continue
        share = sum(padding.share for _, padding in found) / len(seen)
        distance = sum(_distance(each, padding, norm.eps) for each, padding in found) / len(seen)
        if share > SHARE and distance > APART and any(padding.ragged for _, padding in found):
            problem = (
                f"{100 * share:.0f} % of its positions look like padding (they repeat each other) and move its "
                f"statistics by {distance:.2g} standard deviations."
            )
            plain = sum(padding.background for _, padding in found) / len(found)
            certain = len(seen[0].shape) == 3 or (len(seen[0].shape) == 4 and plain < BACKGROUND)
            severity = Severity.WARNING if certain else Severity.NOTE
            yield at(norm, severity, problem, _REMEDY, share=share, distance=distance)


def _distance(seen: Sighting, padding: Padding, eps: float) -> float:
    """Return the distance by which padding moves the moments of a batch."""
    whole = Moments(mean=seen.mean, var=seen.var, count=1)
    return apart(whole, Moments(mean=padding.mean, var=padding.var, count=1), eps=eps)

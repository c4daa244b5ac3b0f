"""Layers that get only one to three values per channel.

Looks at: values per channel, batch times positions, of each call on each batch, and on the last batch of an epoch if
the loader shows its size.

Harm: with one value torch raises "Expected more than 1 value per channel when training"; with two the output is +1 and
−1 for any input. It happens in the last batch of an epoch and in branches that pool to 1 x 1.

Remedy: ``drop_last=True``, a batch of at least 2 (better 16), or remove the batch norm from the pooled branch.

Threshold: an error at 1, a warning at 2 and 3; checked in layers that train.

Source: mmsegmentation issue 272; pytorch issue 156051.
"""

from __future__ import annotations

from collections.abc import Iterator

from steadynorm.doctor.batch_evidence import Sighting
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.finding import Finding, Remedy, Severity, at

NEEDS = ("batches",)
FEW = 4
_REMEDY = Remedy(
    advice="Use drop_last=True or larger batches, or remove the batch norm from a branch that pools to 1 x 1."
)


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    assert evidence.batches is not None
    for norm in evidence.batch_norms:
        seen = evidence.batches.sightings.get(norm.name, ())
        fewest = min((_fewest(each, evidence.batches.last_samples) for each in seen), default=FEW)
        if not norm.training or norm.is_frozen or fewest >= FEW:
            continue
        if fewest == 1:
            problem = "A batch gives it 1 value per channel, for which training raises an error."
            yield at(norm, Severity.ERROR, problem, _REMEDY, values=fewest)
        else:
            problem = f"A batch gives it {fewest} values per channel: its output is nearly the same for any input."
            yield at(norm, Severity.WARNING, problem, _REMEDY, values=fewest)


def _fewest(seen: Sighting, last: int | None) -> int:
    """Return the values per channel of this batch, or of the epoch's last."""
    return seen.count if last is None else min(seen.count, seen.count // seen.samples * last)

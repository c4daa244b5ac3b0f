"""Ranks whose running statistics differ.

Looks at: the running statistics of every rank, from a state dict of each, or gathered over a process group.

Harm: each rank evaluates a different model, and the checkpoint of rank 0 scores differently from the average over
ranks. The causes are ``broadcast_buffers=False``, wrappers other than torch's, and recalibration on each rank's own
data.

Remedy: merge the statistics of all ranks (``merge_statistics``), or measure them with a process group
(``recalibrate_``). Safe.

Threshold: DistributedDataParallel leaves the ranks one step apart between two forwards: every rank has its own batch
with the weight of the momentum. So a note up to the momentum times half a standard deviation (root mean square over
channels, for the rank that is furthest from the mean of all), a warning beyond. An error if some ranks' statistics are
not finite.

Source: pytorch issue 13711; pytorch-image-models issue 110; mmpose issue 998.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from steadynorm.doctor.compared import apart
from steadynorm.doctor.evidence import Evidence, RankStatistics
from steadynorm.doctor.finding import Finding, Remedy, Severity, at
from steadynorm.statistics import Moments

NEEDS = ("ranks",)
SHARE = 0.5
USUAL = 0.1
"""Momentum that is assumed if a layer has none."""
_REMEDY = Remedy(advice="Merge all ranks' statistics (merge_statistics) before evaluating or saving.")


def run(evidence: Evidence) -> Iterator[Finding]:
    """Find them."""
    assert evidence.ranks is not None
    for norm in evidence.norms:
        stored = evidence.ranks.get(norm.name)
        if stored is None or _are_equal(stored):
            continue
        wrong = _without_numbers(stored)
        if wrong:
            if len(wrong) < len(stored.means):
                problem = f"Its running statistics are not valid numbers on rank {wrong[0]}, but are on others."
                yield at(norm, Severity.ERROR, problem, _REMEDY, rank=wrong[0])
            continue
        distance, rank = _furthest(stored, norm.eps)
        known = SHARE * (norm.momentum if norm.momentum is not None else USUAL)
        problem = (
            f"Its running statistics differ over {len(stored.means)} ranks: those of rank {rank} are {distance:.2g} "
            "standard deviations from their mean, so each rank evaluates a different model."
        )
        severity = Severity.WARNING if distance > known else Severity.NOTE
        yield at(norm, severity, problem, _REMEDY, distance=distance, rank=rank)


def _are_equal(stored: RankStatistics) -> bool:
    return all(torch.equal(each, each[:1].expand_as(each)) for each in (stored.means, stored.vars))


def _without_numbers(stored: RankStatistics) -> list[int]:
    """List the ranks with a value that is not finite, or a variance below zero."""
    pairs = zip(stored.means, stored.vars, strict=True)
    return [rank for rank, (mean, var) in enumerate(pairs) if not (mean.isfinite() & var.isfinite() & (var >= 0)).all()]


def _furthest(stored: RankStatistics, eps: float) -> tuple[float, int]:
    """Return the largest distance of a rank from the mean of all, and the rank."""
    mean = Moments(mean=stored.means.mean(0), var=stored.vars.mean(0), count=1)
    each = [
        apart(Moments(mean=one, var=var, count=1), mean, eps=eps)
        for one, var in zip(stored.means, stored.vars, strict=True)
    ]
    return max(each), each.index(max(each))

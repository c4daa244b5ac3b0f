"""Detect running statistics that do not fit: stale ones, and those of layers whose calls in a forward differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from steadynorm.doctor.batch_evidence import Sighting
from steadynorm.doctor.compared import apart, by_call, distance_of, pooled
from steadynorm.doctor.evidence import Evidence, NormState

__all__ = ["FITTING", "STALE", "furthest", "shared_by"]

APART = 0.5
"""Distance in standard deviations from which calls count as different."""
STALE, FITTING = 0.25, 0.125
"""Distance beyond sampling, in standard deviations, from which running statistics do not fit the batches.

The largest distance of a healthy network (``make doctor-bench``) was 0.15, with statistics frozen in fine-tuning; the
smallest of a network with stale statistics that cost accuracy was 0.2.
"""


def furthest(evidence: Evidence) -> float:
    """Return the distance of running statistics from the batches at the worst layer, beyond sampling; inf for NaN."""
    seen = {} if evidence.batches is None else evidence.batches.sightings
    found = [
        distance_of(norm, seen[norm.name])
        for norm in evidence.batch_norms
        if norm.mean is not None and seen.get(norm.name)
    ]
    return max((math.inf if each is None else each.excess for each in found), default=math.inf)


def shared_by(norm: NormState, seen: Sequence[Sighting]) -> tuple[int, float]:
    """Return the number of a layer's calls in a forward, and the distance of the two that differ most; 0 if all agree.

    Three standard errors are subtracted from the distance. Frozen layers have no statistics that calls could share.
    """
    calls = by_call(seen)
    if norm.is_frozen:
        return len(calls), 0.0
    distances = (
        apart(pooled(first), pooled(second), eps=norm.eps) - 3 * _error(first, second)
        for first, second in itertools.combinations(calls, 2)
    )
    distance = max(distances, default=0.0)
    return len(calls), distance if distance > APART else 0.0


def _error(first: list[Sighting], second: list[Sighting]) -> float:
    return math.sqrt(sum(_noise(calls) / sum(each.samples for each in calls) for calls in (first, second)))


def _noise(calls: list[Sighting]) -> float:
    known = [each.noise for each in calls if math.isfinite(each.noise)]
    return sum(known) / len(known) if known else 1.0

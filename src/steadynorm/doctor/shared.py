"""Running statistics that do not fit: those that went stale, and those of layers whose calls in a forward differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from steadynorm.doctor.batch_evidence import Sighting
from steadynorm.doctor.compared import apart, by_call, distance_of, pooled
from steadynorm.doctor.evidence import Evidence, NormState

__all__ = ["FITTING", "STALE", "furthest", "shared_by"]

APART = 0.5
"""Standard deviations from which on calls are unlike."""
STALE, FITTING = 0.25, 0.125
"""Standard deviations beyond sampling: more, and running statistics are not those of the batches; less, and they are.

Of healthy networks (``make doctor-bench``) the furthest was 0.15 off, with statistics frozen in fine-tuning; of those
with stale ones that cost something the nearest was 0.2.
"""


def furthest(evidence: Evidence) -> float:
    """Give how far running statistics are from the batches at the worst layer, beyond sampling; infinity for NaN."""
    seen = {} if evidence.batches is None else evidence.batches.sightings
    found = [
        distance_of(norm, seen[norm.name])
        for norm in evidence.batch_norms
        if norm.mean is not None and seen.get(norm.name)
    ]
    return max((math.inf if each is None else each.excess for each in found), default=math.inf)


def shared_by(norm: NormState, seen: Sequence[Sighting]) -> tuple[int, float]:
    """Give the calls of a layer in a forward, and how far the two furthest are apart; 0 where one description fits all.

    Three standard errors are taken away from the distance. Frozen layers have no statistics that calls could share.
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

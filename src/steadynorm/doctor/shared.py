"""Running estimates that cannot fit: of layers whose calls in a forward are unlike, and of layers that went stale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from steadynorm.doctor.compared import apart, distance_of, pooled
from steadynorm.doctor.evidence import Evidence, NormState, Sighting

__all__ = ["are_stale", "shared_by"]

APART = 0.5
"""Standard deviations from which on calls are unlike."""
STALE = 0.25
"""Standard deviations beyond sampling from which on running estimates are not those of the batches.

Of 47 healthy networks whose layers share nothing the furthest was 0.15 off, one that was fine-tuned with frozen
statistics; of 19 with stale ones the nearest was 0.25.
"""


def shared_by(norm: NormState, seen: Sequence[Sighting]) -> tuple[int, float]:
    """Give the calls of a layer in a forward, and how far the two furthest are apart; 0 where one description fits all.

    Three standard errors are taken away from the distance. Frozen layers have no statistics that calls could share.
    """
    calls = [[each for each in seen if each.call == call] for call in sorted({each.call for each in seen})]
    if norm.is_frozen:
        return len(calls), 0.0
    distances = (
        apart(pooled(first), pooled(second), eps=norm.eps) - 3 * _error(first, second)
        for first, second in itertools.combinations(calls, 2)
    )
    distance = max(distances, default=0.0)
    return len(calls), distance if distance > APART else 0.0


def are_stale(evidence: Evidence) -> bool:
    """Tell whether the running estimates of some layer are clearly not those of the batches.

    What the calls of a layer share fits none of them from the start, and is left out.
    """
    seen = {} if evidence.batches is None else evidence.batches.sightings
    own = [norm for norm in evidence.batch_norms if not shared_by(norm, seen.get(norm.name, ()))[1]]
    distances = (distance_of(norm, seen.get(norm.name, ())) for norm in own)
    return any(each is not None and each.excess > STALE for each in distances)


def _error(first: list[Sighting], second: list[Sighting]) -> float:
    return math.sqrt(sum(_noise(calls) / sum(each.samples for each in calls) for calls in (first, second)))


def _noise(calls: list[Sighting]) -> float:
    known = [each.noise for each in calls if math.isfinite(each.noise)]
    return sum(known) / len(known) if known else 1.0

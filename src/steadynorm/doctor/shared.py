"""Batch norms that are called several times in a forward: how far their calls are apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from steadynorm.doctor.compared import apart, pooled
from steadynorm.doctor.evidence import NormState, Sighting

__all__ = ["APART", "shared_by"]

APART = 0.5
"""Standard deviations from which on calls are unlike."""


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


def _error(first: list[Sighting], second: list[Sighting]) -> float:
    return math.sqrt(sum(_noise(calls) / sum(each.samples for each in calls) for calls in (first, second)))


def _noise(calls: list[Sighting]) -> float:
    known = [each.noise for each in calls if math.isfinite(each.noise)]
    return sum(known) / len(known) if known else 1.0

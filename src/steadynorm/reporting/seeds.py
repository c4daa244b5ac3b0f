"""Numbers over seeds: mean, range and standard deviation, of what is finite.

A value that is not finite is left out of every mean, never passed on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Spread", "are_apart", "largest", "mean", "median", "number_or_none", "spread", "spreads"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One quantity over several seeds."""

    mean: float
    low: float
    high: float
    n: int
    sd: float | None
    """Sample standard deviation (divided by n - 1); None for a single value."""


def spread(values: Iterable[float]) -> Spread | None:
    """Mean, range and sample standard deviation of the finite values; None where there are none."""
    finite = _finite(values)
    if not finite:
        return None
    return Spread(
        mean=statistics.fmean(finite),
        low=min(finite),
        high=max(finite),
        n=len(finite),
        sd=statistics.stdev(finite) if len(finite) > 1 else None,
    )


def spreads(seeds: Iterable[Mapping[str, float]]) -> dict[str, Spread]:
    """Spread of each name's values over the seeds that have it; names without a finite value are left out.

    Args:
        seeds: name -> value, one for each seed.
    """
    values: dict[str, list[float]] = {}
    for seed in seeds:
        for name, value in seed.items():
            values.setdefault(name, []).append(value)
    return {name: found for name, each in values.items() if (found := spread(each))}


def are_apart(first: Spread | None, second: Spread | None) -> bool:
    """Whether two means differ by more than their seeds' ranges overlap; single seeds count as points."""
    if first is None or second is None:
        return False
    return first.low > second.high or second.low > first.high


def mean(values: Iterable[float]) -> float:
    """Mean of the finite values; NaN where there are none."""
    finite = _finite(values)
    return statistics.fmean(finite) if finite else math.nan


def median(values: Iterable[float]) -> float:
    """Median of the finite values; NaN where there are none."""
    finite = _finite(values)
    return statistics.median(finite) if finite else math.nan


def largest(values: Iterable[float]) -> float:
    """Largest of the finite values; NaN where there are none."""
    return max(_finite(values), default=math.nan)


def number_or_none(value: float) -> float | None:
    """Turn NaN into None."""
    return None if math.isnan(value) else value


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]

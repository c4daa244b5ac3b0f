"""Numbers made from records: which rate suits an arm, and what its seeds say together.

Nothing here draws, writes or trains.  A value that is not finite is left out of every mean, never passed on.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from steadynorm.lab.records import Epoch, Record, RunRecord

__all__ = [
    "ArmRuns",
    "Picture",
    "Point",
    "Spread",
    "are_apart",
    "best_rate",
    "curve",
    "largest_fall",
    "pictures",
    "spread",
]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One quantity over several seeds."""

    mean: float
    low: float
    high: float
    n: int
    sd: float | None
    """Sample standard deviation (divided by n - 1); None for a single value."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One epoch of a curve: the mean over the runs that reached it, and what lies around it."""

    epoch: int
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class ArmRuns:
    """The runs of one arm at one learning rate, one for each seed."""

    arm: str
    lr: float
    runs: tuple[RunRecord, ...]

    @property
    def finished(self) -> tuple[RunRecord, ...]:
        """The runs that trained to their last epoch."""
        return tuple(run for run in self.runs if run.status == "finished")

    @property
    def diverged(self) -> tuple[RunRecord, ...]:
        """The runs whose loss stopped being finite."""
        return tuple(run for run in self.runs if run.status == "diverged")

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Every epoch of every run."""
        return tuple(epoch for run in self.runs for epoch in run.epochs)

    @property
    def reached(self) -> int:
        """The last epoch that any of the runs finished; 0 where none did."""
        return max((epoch.epoch for epoch in self.epochs), default=0)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One fair way to look at the arms: all at the shared rate, or each at its own best one."""

    name: Literal["shared", "tuned"]
    arms: tuple[ArmRuns, ...]


def spread(values: Iterable[float]) -> Spread | None:
    """Mean, range and sample standard deviation of the finite values; None where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    return Spread(
        mean=statistics.fmean(finite),
        low=min(finite),
        high=max(finite),
        n=len(finite),
        sd=statistics.stdev(finite) if len(finite) > 1 else None,
    )


def are_apart(first: Spread | None, second: Spread | None) -> bool:
    """Whether two means differ by more than their seeds' ranges overlap; single seeds count as points."""
    if first is None or second is None:
        return False
    return first.low > second.high or second.low > first.high


def best_rate(runs: Iterable[RunRecord], arm: str) -> float | None:
    """Choose the learning rate of an arm from its ``tune`` runs.

    It is the one with the highest held-out accuracy after the last epoch; of equals, the smallest.  A run
    that diverged, has not finished, or ended with an accuracy that is no number is no candidate.

    Args:
        runs: any runs; other arms and other purposes are passed over.
        arm: registered name of the normalization.

    Returns:
        the rate before any decay, or None where no run can be used.
    """
    candidates = [
        (-run.epochs[-1].val_accuracy, run.spec.lr)
        for run in runs
        if run.spec.purpose == "tune" and run.spec.arm == arm and run.status == "finished" and run.epochs
    ]
    return min((pair for pair in candidates if math.isfinite(pair[0])), default=(0.0, None))[1]


def pictures(record: Record) -> tuple[Picture, ...]:
    """Group the ``compare`` runs into the picture at the shared rate and, once tuning is over, the tuned one.

    The tuned picture holds the arms that have a best rate; where that is the shared rate, the same runs serve
    both.  It is absent while any ``tune`` run still waits, because the best rates may change.
    """
    arms = [str(arm) for arm in record.config["arms"]]
    shared = Picture(name="shared", arms=tuple(_arm_runs(record.runs, arm, float(record.config["lr"])) for arm in arms))
    tune = [run for run in record.runs if run.spec.purpose == "tune"]
    if not tune or any(run.status in ("waiting", "running") for run in tune):
        return (shared,)
    rates = {arm: best_rate(tune, arm) for arm in arms}
    tuned = tuple(_arm_runs(record.runs, arm, rate) for arm, rate in rates.items() if rate is not None)
    return (shared, Picture(name="tuned", arms=tuned)) if tuned else (shared,)


def curve(
    runs: Sequence[RunRecord],
    value: Callable[[Epoch], float],
    *,
    band: tuple[Callable[[Epoch], float], Callable[[Epoch], float]] | None = None,
) -> tuple[Point, ...]:
    """Follow one column over the epochs: at each, the mean and range over the runs that reached it.

    Args:
        runs: of one arm at one rate.
        value: the column.
        band: columns for ``low`` and ``high`` instead of the range over the runs, averaged likewise.
    """
    rows: dict[int, list[Epoch]] = {}
    for run in runs:
        for epoch in run.epochs:
            rows.setdefault(epoch.epoch, []).append(epoch)
    points = []
    for number, epochs in sorted(rows.items()):
        centre = spread(value(epoch) for epoch in epochs)
        if centre is None:
            continue
        low, high = centre.low, centre.high
        if band is not None:
            sides = [spread(side(epoch) for epoch in epochs) for side in band]
            low, high = (side.mean if side else centre.mean for side in sides)
        points.append(Point(epoch=number, mean=centre.mean, low=low, high=high, n=centre.n))
    return tuple(points)


def largest_fall(run: RunRecord, *, until: int) -> float:
    """How far validation accuracy fell from one epoch to the next, at worst, up to epoch ``until``.

    Returns:
        a share >= 0; NaN where fewer than two epochs can be compared.
    """
    values = [epoch.val_accuracy for epoch in run.epochs if epoch.epoch <= until]
    falls = [before - after for before, after in itertools.pairwise(values)]
    finite = [fall for fall in falls if math.isfinite(fall)]
    return max(0.0, *finite) if finite else math.nan


def _arm_runs(runs: Iterable[RunRecord], arm: str, lr: float) -> ArmRuns:
    chosen = [run for run in runs if (run.spec.purpose, run.spec.arm, run.spec.lr) == ("compare", arm, lr)]
    return ArmRuns(arm=arm, lr=lr, runs=tuple(sorted(chosen, key=lambda run: run.spec.seed)))

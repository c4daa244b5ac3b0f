"""What batch size 1 costs: each arm beside the default build, and each way to adapt beside the stored statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from steadynorm.lab.analysis import ArmRuns, Spread, spread
from steadynorm.lab.experiments.stream import DEFAULT_BUILD, ORDERS
from steadynorm.lab.records import CellRecord, Record, RunRecord

__all__ = ["Single", "Way", "arm_runs", "default_runs", "singles", "ways"]


@dataclass(frozen=True, kw_only=True)
class Single:
    """One arm trained at batch size 1; spreads are over the seeds."""

    arm: str
    seeds: int
    diverged_at_step: tuple[int, ...]
    accuracy: Spread | None
    """On the validation images after the last epoch."""
    drop: Spread | None
    """Accuracy of the default build less that, seed by seed."""
    recalibrated: Spread | None
    """Accuracy once the running statistics are those of training images, for the weights as they are."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way in which the default build meets single test images; spreads are over the seeds."""

    method: str
    order: str
    accuracy: Spread | None
    gain: Spread | None
    """Accuracy less that of the stored statistics on the same images, seed by seed."""


def singles(record: Record) -> list[Single]:
    """Summarise every arm, in the order of the configuration."""
    return [_single(record, str(arm)) for arm in record.config["arms"]]


def ways(record: Record) -> list[Way]:
    """Summarise every way to adapt, order after order."""
    return [_way(record, str(method), order) for order in ORDERS for method in record.config["methods"]]


def arm_runs(record: Record, arm: str) -> ArmRuns:
    """Collect the runs of an arm at batch size 1."""
    runs = [run for run in record.runs if run.spec.batch_size == 1 and run.spec.arm == arm]
    return _arm_runs(arm, runs)


def default_runs(record: Record) -> ArmRuns:
    """Collect the runs of the default build."""
    return _arm_runs(DEFAULT_BUILD, [run for run in record.runs if run.spec.batch_size is None])


def _arm_runs(arm: str, runs: Sequence[RunRecord]) -> ArmRuns:
    return ArmRuns(arm=arm, lr=runs[0].spec.lr if runs else 0.0, runs=tuple(runs))


def _single(record: Record, arm: str) -> Single:
    mine, default = arm_runs(record, arm), default_runs(record)
    accuracy, reference = _by_seed(mine), _by_seed(default)
    recalibrated = _cells(record, part="recalibrated", arm=arm)
    return Single(
        arm=arm,
        seeds=len(mine.runs),
        diverged_at_step=tuple(run.diverged_at_step or 0 for run in mine.diverged),
        accuracy=spread(accuracy.values()),
        drop=spread(reference[seed] - value for seed, value in accuracy.items() if seed in reference),
        recalibrated=spread(row.value for cell in recalibrated for row in cell.measurements),
    )


def _by_seed(runs: ArmRuns) -> dict[int, float]:
    return {run.spec.seed: run.epochs[-1].val_accuracy for run in runs.finished}


def _way(record: Record, method: str, order: str) -> Way:
    found = [_values(cell) for cell in _cells(record, part="stream", order=order)]
    return Way(
        method=method,
        order=order,
        accuracy=spread(values[method] for values in found if method in values),
        gain=spread(values[method] - values["stored"] for values in found if {method, "stored"} <= values.keys()),
    )


def _cells(record: Record, **factors: str) -> Iterable[CellRecord]:
    return [cell for cell in record.cells if factors.items() <= cell.factors.items() and cell.is_measured]


def _values(cell: CellRecord) -> dict[str, float]:
    return {row.subject: row.value for row in cell.measurements if row.quantity == "accuracy"}

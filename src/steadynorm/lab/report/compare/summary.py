"""What was measured for each arm of a comparison, as numbers a program can read."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import Any

from steadynorm.lab.analysis import ArmRuns, Picture, Spread, curve, largest_fall, pictures, spread
from steadynorm.lab.records import Epoch, Record, RunRecord
from steadynorm.lab.report.document import run_as_json

__all__ = ["ArmSummary", "early_epoch", "findings", "is_finished", "summarise"]

ARTICLE_EPOCH = 10


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm at one learning rate; every spread is over its seeds.

    What is taken over the epochs (gap, fall, gradient norms) leaves out diverged runs, which have fewer, as long
    as another run is left.
    """

    arm: str
    lr: float
    seeds: int
    """Planned runs, whatever became of them."""
    finished: int
    diverged: int
    diverged_at_step: tuple[int, ...]
    reached_epoch: int
    """The last epoch any run finished."""
    val_accuracy: Spread | None
    """After the last epoch, of the runs that finished."""
    val_accuracy_early: Spread | None
    """After the early epoch (see :func:`early_epoch`), of every run that reached it."""
    val_accuracy_reached: Spread | None
    """After the last epoch of each run that has any, finished or not."""
    best_epoch: int | None
    """Where the mean validation accuracy is highest."""
    train_accuracy: Spread | None
    val_loss: Spread | None
    largest_gap: Spread | None
    """Largest excess of training over validation accuracy at any epoch."""
    largest_fall: Spread | None
    """Worst fall of validation accuracy between neighbouring epochs, before the rate is first lowered."""
    grad_norm: Spread | None
    """Mean over all epochs of the gradient norm of all parameters."""
    grad_norm_ratio: Spread | None
    """Median over the epochs of the 95th over the 5th percentile within an epoch: 1 is perfectly steady."""
    seconds_per_epoch: float | None
    """Median over all epochs, validation included."""
    images_per_second: float | None
    """Median over all epochs of training alone."""
    parameters: int | None


def early_epoch(record: Record) -> int:
    """Give the epoch at which the arms are compared early: the article's 10, or the middle if shorter."""
    planned = int(record.config["epochs"])
    return ARTICLE_EPOCH if planned >= ARTICLE_EPOCH else max(1, (planned + 1) // 2)


def is_finished(record: Record) -> bool:
    """Whether every planned run has ended, one way or the other."""
    ended = all(run.status in ("finished", "diverged") for run in record.runs)
    planned = len(record.config["seeds"])
    return ended and all(len(arm.runs) == planned for picture in pictures(record) for arm in picture.arms)


def summarise(record: Record, arm: ArmRuns) -> ArmSummary:
    """Reduce the runs of one arm to the numbers of the headline table."""
    early = early_epoch(record)
    decay = min((int(epoch) for epoch in record.config["milestones"]), default=int(record.config["epochs"]))
    last = [run.epochs[-1] for run in arm.finished if run.epochs]
    steady = [run for run in arm.runs if run.status != "diverged"] or arm.runs
    accuracies = curve(arm.runs, lambda epoch: epoch.val_accuracy)
    return ArmSummary(
        arm=arm.arm,
        lr=arm.lr,
        seeds=len(arm.runs),
        finished=len(arm.finished),
        diverged=len(arm.diverged),
        diverged_at_step=tuple(run.diverged_at_step for run in arm.diverged if run.diverged_at_step is not None),
        reached_epoch=arm.reached,
        val_accuracy=spread(epoch.val_accuracy for epoch in last),
        val_accuracy_early=spread(epoch.val_accuracy for epoch in arm.epochs if epoch.epoch == early),
        val_accuracy_reached=spread(run.epochs[-1].val_accuracy for run in arm.runs if run.epochs),
        best_epoch=max(accuracies, key=lambda point: point.mean).epoch if accuracies else None,
        train_accuracy=spread(epoch.train_accuracy for epoch in last),
        val_loss=spread(epoch.val_loss for epoch in last),
        largest_gap=spread(_largest_gap(run) for run in steady),
        largest_fall=spread(largest_fall(run, until=decay) for run in steady),
        grad_norm=spread(_mean_norm(run) for run in steady),
        grad_norm_ratio=spread(_steadiness(run) for run in steady),
        seconds_per_epoch=_median([epoch.seconds for epoch in arm.epochs]),
        images_per_second=_median([epoch.images_per_second for epoch in arm.epochs]),
        parameters=max((run.parameters for run in arm.runs), default=0) or None,
    )


def findings(record: Record) -> dict[str, Any]:
    """Everything above for ``summary.json``."""
    return {
        "early_epoch": early_epoch(record),
        "pictures": {picture.name: _picture(record, picture) for picture in pictures(record)},
        "runs": [run_as_json(run) for run in record.runs],
    }


def _picture(record: Record, picture: Picture) -> dict[str, Any]:
    return {arm.arm: asdict(summarise(record, arm)) for arm in picture.arms}


def _finite(values: list[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _median(values: list[float]) -> float | None:
    finite = _finite(values)
    return statistics.median(finite) if finite else None


def _largest_gap(run: RunRecord) -> float:
    return max(_finite([epoch.train_accuracy - epoch.val_accuracy for epoch in run.epochs]), default=math.nan)


def _mean_norm(run: RunRecord) -> float:
    finite = _finite([epoch.grad_norm_mean for epoch in run.epochs])
    return statistics.fmean(finite) if finite else math.nan


def _steadiness(run: RunRecord) -> float:
    ratio = _median([_ratio(epoch) for epoch in run.epochs])
    return math.nan if ratio is None else ratio


def _ratio(epoch: Epoch) -> float:
    return epoch.grad_norm_p95 / epoch.grad_norm_p5 if epoch.grad_norm_p5 > 0 else math.nan

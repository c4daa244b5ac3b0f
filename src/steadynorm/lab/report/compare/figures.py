"""The figures of a comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from steadynorm.lab.analysis import ArmRuns, Picture, pictures
from steadynorm.lab.records import Record
from steadynorm.lab.report.compare.layers import draw_layers
from steadynorm.lab.report.compare.rates import draw_rates
from steadynorm.lab.report.curves import Column, Curve, draw_curves
from steadynorm.lab.report.figure import Drawing, canvas, render, series
from steadynorm.lab.report.quantities import rate, seconds
from steadynorm.lab.report.wording import arm_label, position

__all__ = ["draw_all"]

VAL_ACCURACY = Column(
    name="val_accuracy", title="Validation accuracy", value=lambda row: row.val_accuracy, is_share=True
)
COLUMNS = (
    VAL_ACCURACY,
    Column(name="train_accuracy", title="Training accuracy", value=lambda row: row.train_accuracy, is_share=True),
    Column(name="val_loss", title="Validation loss", value=lambda row: row.val_loss),
    Column(name="train_loss", title="Training loss", value=lambda row: row.train_loss),
)
GRAD_NORM = Column(
    name="grad_norm",
    title="Gradient norm of all parameters",
    value=lambda row: row.grad_norm_mean,
    step_band=(lambda row: row.grad_norm_p5, lambda row: row.grad_norm_p95),
)
CAPTIONS = {
    "val_accuracy": "After each epoch, in evaluation mode.",
    "train_accuracy": "Measured during the epoch.",
    "val_loss": "Mean cross-entropy in nats.",
    "train_loss": "Mean cross-entropy in nats, measured during the epoch.",
    "grad_norm": "Of the l2 norm, at each step.",
}


def draw_all(record: Record) -> dict[str, tuple[Drawing, ...]]:
    """Draw every figure that the record has numbers for.

    Returns:
        figures by the section of the report they belong to: curves, gradients (and time), tuning.
    """
    shared, *tuned = [picture for picture in pictures(record) if _has_begun(picture) or picture.name == "shared"]
    drawings: dict[str, tuple[Drawing, ...]] = {"curves": (), "gradients": (), "tuning": tuple(draw_rates(record))}
    if _has_begun(shared):
        drawings["curves"] = tuple(_over_epochs(record, shared, column) for column in COLUMNS)
        norms = _over_epochs(record, shared, GRAD_NORM)
        drawings["gradients"] = (norms, *draw_layers(record, shared), *_time(record, shared))
    drawings["tuning"] += tuple(_tuned(record, picture) for picture in tuned)
    return drawings


def _has_begun(picture: Picture) -> bool:
    return any(arm.epochs or arm.diverged for arm in picture.arms)


def _over_epochs(record: Record, picture: Picture, column: Column) -> Drawing:
    return draw_curves(
        _curves(record, picture.arms),
        column,
        name=column.name,
        caption=CAPTIONS[column.name],
        epochs=int(record.config["epochs"]),
        milestones=[int(epoch) for epoch in record.config["milestones"]],
    )


def _tuned(record: Record, picture: Picture) -> Drawing:
    column = Column(
        name="val_accuracy_tuned",
        title="Validation accuracy, each at its own best rate",
        value=VAL_ACCURACY.value,
        is_share=True,
    )
    return draw_curves(
        _curves(record, picture.arms, with_rate=True),
        column,
        name=column.name,
        caption="After each epoch, in evaluation mode.",
        epochs=int(record.config["epochs"]),
        milestones=[int(epoch) for epoch in record.config["milestones"]],
    )


def _curves(record: Record, arms: Iterable[ArmRuns], *, with_rate: bool = False) -> list[Curve]:
    return [
        Curve(
            label=f"{arm_label(arm.arm)}, {rate(arm.lr)}" if with_rate else arm_label(arm.arm),
            position=position(record, arm.arm),
            runs=arm,
        )
        for arm in arms
        if arm.runs
    ]


def _time(record: Record, picture: Picture) -> Iterable[Drawing]:
    times = {arm.arm: [row.seconds for row in arm.epochs if math.isfinite(row.seconds)] for arm in picture.arms}
    times = {arm: values for arm, values in times.items() if values}
    if not times:
        return
    with canvas(height=0.95 + 0.42 * len(times)) as (figure, axes):
        for place, (arm, values) in enumerate(times.items()):
            middle = statistics.median(values)
            axes.barh(place, middle, height=0.56, color=series(position(record, arm))["color"])
            axes.annotate(
                seconds(middle),
                (middle, place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_yticks(range(len(times)), [arm_label(arm) for arm in times])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.18)
        axes.set_xlabel("seconds")
        axes.set_title("Time for one epoch")
        yield render(
            figure,
            name="time",
            title="Time for one epoch",
            caption="Median over all epochs, validation included.",
        )

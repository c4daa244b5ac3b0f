"""The tables of the loss around the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from steadynorm.lab.analysis import Spread
from steadynorm.lab.records import Record
from steadynorm.lab.report.figure import SERIES
from steadynorm.lab.report.landscape.courses import ArmCourses
from steadynorm.lab.report.landscape.measures import Quantity, find_quantity, over_looks
from steadynorm.lab.report.page import Cell, Table
from steadynorm.lab.report.quantities import NONE, number, percent_spread, spread_note
from steadynorm.lab.report.wording import arm_label, capital, listing, position

__all__ = ["IN_RATES", "IN_WEIGHTS", "SCALES", "quantity_table", "short_table", "training_table"]

IN_RATES = tuple(find_quantity(key) for key in ("loss_range", "raised", "gradient_change", "smoothness"))
IN_WEIGHTS = tuple(
    find_quantity(key) for key in ("free_loss_range", "free_raised", "free_gradient_change", "free_smoothness")
)
SCALES = tuple(find_quantity(key) for key in ("gradient_norm", "weight_norm", "relative_step"))


def training_table(record: Record, arms: Sequence[ArmCourses]) -> Table:
    """Say how each arm trained and ended."""
    columns = ("Normalization", "Final validation accuracy", "Final training loss", "Status")
    rows = [
        [
            _name(record, arm),
            Cell(text=percent_spread(arm.val_accuracy), note=spread_note(arm.val_accuracy), tone="strong"),
            _number(arm.train_loss),
            _status(record, arm),
        ]
        for arm in arms
    ]
    return Table(columns=columns, rows=rows)


def quantity_table(record: Record, arms: Sequence[ArmCourses], quantities: Sequence[Quantity]) -> Table:
    """Give the median over the looks of each quantity, and its mean and range over the seeds."""
    rows = [
        [_name(record, arm), *(_number(over_looks(arm, one), one.shown) for one in quantities)]
        for arm in arms
        if arm.courses
    ]
    return Table(columns=("Normalization", *(one.label for one in quantities)), rows=rows)


def short_table(arms: Sequence[ArmCourses]) -> Table:
    """Lay out what a terminal shows."""
    columns = ("arm", "seeds", "validation accuracy", "loss range", "gradient change", "β", "β ‖w‖²")
    shown = [find_quantity(key) for key in ("loss_range", "gradient_change", "smoothness", "free_smoothness")]
    rows = [
        [
            Cell(text=text)
            for text in (
                arm.arm,
                str(len(arm.courses)),
                _ending(arm),
                *(number(found.mean if found else None) for found in (over_looks(arm, one) for one in shown)),
            )
        ]
        for arm in arms
    ]
    return Table(columns=columns, rows=rows)


def _ending(arm: ArmCourses) -> str:
    lost, all_of_them = len(arm.diverged), len(arm.courses)
    if not lost:
        return percent_spread(arm.val_accuracy)
    if lost == all_of_them:
        return "diverged"
    return f"{percent_spread(arm.val_accuracy)}; {lost} of {all_of_them} diverged"


def _name(record: Record, arm: ArmCourses) -> Cell:
    return Cell(text=capital(arm_label(arm.arm)), tone=f"series-{position(record, arm.arm) % len(SERIES)}")


def _number(found: Spread | None, shown: Callable[[float | None], str] = number) -> Cell:
    if found is None:
        return Cell(text=NONE)
    seeds = f"{shown(found.low)} to {shown(found.high)}, n = {found.n}" if found.n > 1 else ""
    return Cell(text=shown(found.mean), note=seeds)


def _status(record: Record, arm: ArmCourses) -> Cell:
    planned = len(record.config["seeds"])
    if arm.diverged:
        steps = listing([f"{course.diverged_at:,}" for course in arm.diverged])
        return Cell(text=f"{len(arm.diverged)} of {planned} diverged at step {steps}", tone="bad")
    if len(arm.courses) < planned:
        return Cell(text=f"{len(arm.courses)} of {planned} measured" if arm.courses else "waiting", tone="muted")
    return Cell(text="finished", note="" if planned == 1 else f"{planned} seeds")

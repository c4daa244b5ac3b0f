"""The tables of the sigmoid network."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.analysis import Spread
from steadynorm.lab.records import Record
from steadynorm.lab.report.classic.expectations import steps
from steadynorm.lab.report.classic.summary import ArmSummary
from steadynorm.lab.report.figure import SERIES
from steadynorm.lab.report.page import Cell, Table
from steadynorm.lab.report.quantities import NONE, number, percent_spread, seconds, spread_note
from steadynorm.lab.report.wording import arm_label, capital, listing, position

__all__ = ["full_table", "short_table"]


def full_table(record: Record, arms: Sequence[ArmSummary]) -> Table:
    """Lay out one row for each arm."""
    shifts = ("Drift", "Path", "Change of width")
    columns = ("Normalization", "Test accuracy", "Steps to common accuracy", "Training loss", *shifts, "Time", "Status")
    return Table(columns=columns, rows=[_row(record, arm) for arm in arms])


def short_table(arms: Sequence[ArmSummary]) -> Table:
    """Lay out what a terminal shows."""
    columns = ("arm", "seeds", "test accuracy", "steps to common accuracy", "drift", "change of width", "s")
    return Table(columns=columns, rows=[_short_row(arm) for arm in arms])


def _row(record: Record, arm: ArmSummary) -> list[Cell]:
    return [
        Cell(text=capital(arm_label(arm.arm)), tone=f"series-{position(record, arm.arm) % len(SERIES)}"),
        Cell(text=percent_spread(arm.test_accuracy), note=spread_note(arm.test_accuracy), tone="strong"),
        _common(arm),
        _mean(arm.train_loss),
        _mean(arm.drift),
        _mean(arm.path),
        _mean(arm.width_ratio),
        Cell(text=seconds(arm.seconds.mean if arm.seconds else None)),
        _status(arm),
    ]


def _short_row(arm: ArmSummary) -> list[Cell]:
    time = seconds(arm.seconds.mean if arm.seconds else None)
    shifts = (_mean(arm.drift).text, _mean(arm.width_ratio).text)
    accuracy = percent_spread(arm.test_accuracy)
    if arm.diverged_at_step:
        accuracy = f"{accuracy}; {_status(arm).text}" if arm.test_accuracy else _status(arm).text
    return [Cell(text=text) for text in (arm.arm, str(arm.seeds), accuracy, _common(arm).text, *shifts, time)]


def _common(arm: ArmSummary) -> Cell:
    found = arm.steps_to_common
    missed = f"never in {arm.common_missed} of {arm.seeds} seeds" if arm.common_missed else ""
    if found is None:
        return Cell(text="never" if arm.common_missed else NONE, note=missed)
    return Cell(text=steps(found.mean), note=missed or _between(found, steps(found.low), steps(found.high)))


def _mean(found: Spread | None) -> Cell:
    if found is None:
        return Cell(text=NONE)
    return Cell(text=number(found.mean), note=_between(found, number(found.low), number(found.high)))


def _between(found: Spread, low: str, high: str) -> str:
    return f"{low} to {high}" if found.n > 1 else ""


def _status(arm: ArmSummary) -> Cell:
    if arm.diverged_at_step:
        when = listing([steps(step) for step in arm.diverged_at_step])
        return Cell(text=f"diverged at step {when}", tone="bad", note=_still_open(arm))
    if arm.measured == arm.seeds:
        return Cell(text="finished")
    return Cell(text=f"{arm.measured} of {arm.seeds} seeds" if arm.measured else "waiting", tone="muted")


def _still_open(arm: ArmSummary) -> str:
    return f"{arm.measured} of {arm.seeds} seeds measured" if arm.measured < arm.seeds else ""

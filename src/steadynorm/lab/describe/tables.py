"""Entries and columns of tables by arms."""

from __future__ import annotations

from collections.abc import Callable

from steadynorm.lab.describe.arms import Arm
from steadynorm.lab.describe.names import arm_label
from steadynorm.reporting.numbers import NONE, number, percent_spread, seed_count, spread_note
from steadynorm.reporting.records import Record
from steadynorm.reporting.report import Entry
from steadynorm.reporting.seeds import Spread
from steadynorm.reporting.words import capital

__all__ = [
    *("SERIES", "accuracy_column", "accuracy_entry", "arm_cell", "ending", "seeds_note"),
    *("spread_column", "spread_entry", "status_entry"),
]

SERIES = 6  # number of colors


def arm_cell(record: Record, arm: str, *, before: int = 0) -> Entry:
    """Name an arm at the head of a row, with its color; ``before`` lines come before those of the arms."""
    place = before + [str(name) for name in record.config["arms"]].index(arm)
    return Entry(text=capital(arm_label(arm)), tone=f"series-{place % SERIES}")


def accuracy_entry(value: Spread | None, tone: str = "") -> Entry:
    """Write an accuracy, with its range over the seeds below it."""
    return Entry(text=percent_spread(value), note=spread_note(value), tone=tone)


def spread_entry(value: Spread | None, shown: Callable[[float], str] = number) -> Entry:
    """Write a mean over seeds, with their range below it."""
    if value is None:
        return Entry(text=NONE)
    several = f"{shown(value.low)} to {shown(value.high)}, {seed_count(value)}" if value.n > 1 else ""
    return Entry(text=shown(value.mean), note=several)


def spread_column(quantity: str, shown: Callable[[float], str] = number) -> Callable[[Arm], Entry]:
    """Make a column of a table of arms: mean over the seeds, their range below it."""
    return lambda arm: spread_entry(arm[quantity], shown)


def accuracy_column(quantity: str = "val_accuracy", tone: str = "strong") -> Callable[[Arm], Entry]:
    """Make a column of a table of arms: mean and standard deviation over the seeds, their range below them."""
    return lambda arm: accuracy_entry(arm[quantity], tone)


def ending(accuracy: Spread | None, lost: str) -> str:
    """Write a final accuracy and the networks without one, for a terminal."""
    return f"{percent_spread(accuracy)}; {lost}" if accuracy and lost else lost or percent_spread(accuracy)


def status_entry(arm: Arm, so_far: str = "") -> Entry:
    """Describe how the networks of an arm ended; ``so_far``: their progress, if some have not."""
    some = f"{len(arm.ended)} of {arm.seeds} measured" if 0 < len(arm.ended) < arm.seeds else ""
    if arm.lost:
        return Entry(text=arm.lost, tone="bad", note=some)
    if arm.ended and not some:
        return Entry(text="finished", note="" if arm.seeds == 1 else f"{arm.seeds} seeds")
    return Entry(text=so_far or some or "waiting", tone="muted", note=some if so_far else "")


def seeds_note(record: Record) -> str:
    """Describe what the number of seeds allows to conclude from a table."""
    if len(record.config["seeds"]) == 1:
        return "There is one seed: another would move these numbers by an unknown amount."
    return "Spreads are the standard deviation over seeds; notes give their range."

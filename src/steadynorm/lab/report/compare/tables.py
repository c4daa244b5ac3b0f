"""The tables of a comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from steadynorm.lab.records import Record
from steadynorm.lab.report.compare.summary import ArmSummary, early_epoch
from steadynorm.lab.report.figure import SERIES
from steadynorm.lab.report.page import Cell, Table
from steadynorm.lab.report.quantities import (
    NONE,
    number,
    percent,
    percent_spread,
    points,
    rate,
    seconds,
    spread_note,
)
from steadynorm.lab.report.wording import arm_label, capital, listing, position

__all__ = ["headline_table", "short_table", "status"]


def headline_table(record: Record, arms: Sequence[ArmSummary], *, with_rate: bool = False) -> Table:
    """Lay out one row for each arm.

    Args:
        record: the experiment.
        arms: its summaries.
        with_rate: whether the arms' learning rates differ and deserve a column.
    """
    columns = (
        "Normalization",
        *(("Learning rate",) if with_rate else ()),
        "Final validation accuracy",
        f"At epoch {early_epoch(record)}",
        "Training ahead, at most",
        "Gradient norm",
        "Time per epoch",
        "Status",
    )
    rows = [_row(record, arm, with_rate=with_rate) for arm in arms]
    return Table(columns=columns, rows=rows)


def short_table(pictures: Iterable[Sequence[ArmSummary]]) -> Table:
    """Lay out what a terminal shows: the arms at the shared rate and, where rates were tuned, each at its own."""
    columns = ("arm", "learning rate", "seeds", "validation accuracy", "gradient norm", "s/epoch")
    return Table(columns=columns, rows=[_short_row(arm) for arms in pictures for arm in arms])


def status(record: Record, arm: ArmSummary) -> Cell:
    """Say how the runs of an arm ended, or how far they are."""
    if arm.diverged:
        steps = listing([f"{step:,}" for step in arm.diverged_at_step])
        where = f"diverged at step {steps}" if steps else "diverged"
        counted = where if arm.seeds == 1 else f"{arm.diverged} of {arm.seeds} {where}"
        return Cell(text=counted, tone="bad", note=_still_open(arm))
    if arm.seeds and arm.finished == arm.seeds:
        return Cell(text="finished", note="" if arm.seeds == 1 else f"{arm.seeds} seeds")
    if arm.reached_epoch == 0:
        return Cell(text="waiting", tone="muted")
    return Cell(text=f"epoch {arm.reached_epoch} of {record.config['epochs']}", note=_still_open(arm))


def _row(record: Record, arm: ArmSummary, *, with_rate: bool) -> list[Cell]:
    tone = f"series-{position(record, arm.arm) % len(SERIES)}"
    gap, steady = arm.largest_gap, arm.grad_norm_ratio
    return [
        Cell(text=capital(arm_label(arm.arm)), tone=tone),
        *([Cell(text=rate(arm.lr))] if with_rate else []),
        _accuracy(arm),
        Cell(text=percent_spread(arm.val_accuracy_early)),
        Cell(text=NONE if gap is None else points(gap.mean) if gap.mean > 0 else "never ahead"),
        Cell(
            text=number(arm.grad_norm.mean if arm.grad_norm else None),
            note=f"p95/p5 {number(steady.mean)}" if steady else "",
        ),
        Cell(
            text=seconds(arm.seconds_per_epoch),
            note=f"{arm.images_per_second:,.0f}\N{NO-BREAK SPACE}images/s" if arm.images_per_second else "",
        ),
        status(record, arm),
    ]


def _short_row(arm: ArmSummary) -> list[Cell]:
    accuracy = f"epoch {arm.reached_epoch}, not finished"
    if arm.val_accuracy is not None:
        accuracy = percent_spread(arm.val_accuracy)
    if arm.diverged:
        steps = f"diverged at step {', '.join(map(str, arm.diverged_at_step))}"
        accuracy = steps if arm.val_accuracy is None else f"{accuracy}; {steps}"
    norm, time = arm.grad_norm, arm.seconds_per_epoch
    texts = (arm.arm, rate(arm.lr), str(arm.seeds), accuracy, number(norm.mean if norm else None), seconds(time))
    return [Cell(text=text) for text in texts]


def _accuracy(arm: ArmSummary) -> Cell:
    if arm.val_accuracy is not None:
        return Cell(text=percent_spread(arm.val_accuracy), note=spread_note(arm.val_accuracy), tone="strong")
    if arm.val_accuracy_reached is not None:
        return Cell(
            text=NONE,
            note=f"{percent(arm.val_accuracy_reached.mean)} {_until(arm)} epoch {arm.reached_epoch}",
        )
    return Cell(text=NONE)


def _still_open(arm: ArmSummary) -> str:
    missing = arm.seeds - arm.finished - arm.diverged
    return f"{arm.finished} of {arm.seeds} seeds finished" if missing and arm.seeds > 1 else ""


def _until(arm: ArmSummary) -> str:
    return "when it diverged after" if arm.diverged == arm.seeds else "so far, at"

"""What was measured for each arm of the sigmoid network, as numbers a program can read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steadynorm.lab.analysis import Spread, spread
from steadynorm.lab.records import CellRecord, Record
from steadynorm.lab.report.wording import batch_arm, plain_arm
from steadynorm.lab.sigmoids import PERCENTILES

__all__ = [
    "ArmSummary",
    "curve",
    "findings",
    "is_finished",
    "measured_cells",
    "shown_unit",
    "summarise",
    "units",
    "values",
]

SHOWN = "unit 0"
"""The sigmoid whose input the figures show: the first, so that nobody chose it."""


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """One arm; every spread is over its measured seeds, without those that diverged."""

    arm: str
    seeds: int
    """Planned."""
    measured: int
    """Measured to the end or until the loss was not finite."""
    diverged_at_step: tuple[int, ...]
    """Of the seeds that did: the measurement that found it."""
    test_accuracy: Spread | None
    """After the last step."""
    train_loss: Spread | None
    """Mean over the last hundredth of the steps."""
    steps_to_common: Spread | None
    """First measured step at which test accuracy was that which both batch norm and no normalization ended with or
    above, in the same seed."""
    common_missed: int
    """Seeds that never were."""
    drift: Spread | None
    """Median over the last hidden layer's sigmoids of how far the median of their input was from its final place."""
    path: Spread | None
    """Likewise, of all that it moved from measurement to measurement."""
    width_ratio: Spread | None
    """Likewise, of the largest over the smallest distance from the 15th to the 85th percentile."""
    eval_drift: Spread | None
    """The three in evaluation mode."""
    eval_path: Spread | None
    eval_width_ratio: Spread | None
    seconds: Spread | None
    """For one seed, measurements included."""


def measured_cells(record: Record, arm: str) -> tuple[CellRecord, ...]:
    """Give the measured cells of an arm, one for each seed."""
    return tuple(cell for cell in record.cells if cell.is_measured and cell.factors["arm"] == arm)


def is_finished(record: Record) -> bool:
    """Whether every planned cell is measured."""
    planned = len(record.config["arms"]) * len(record.config["seeds"])
    return len(record.cells) == planned and all(cell.is_measured for cell in record.cells)


def values(cell: CellRecord, quantity: str, subject: str = "") -> dict[int, float]:
    """Give a quantity by the step after which it was measured."""
    return {row.step: row.value for row in cell.measurements if (row.quantity, row.subject) == (quantity, subject)}


def units(cell: CellRecord, quantity: str) -> dict[str, float]:
    """Give a quantity that every sigmoid has once, by the sigmoid."""
    return {row.subject: row.value for row in cell.measurements if row.quantity == quantity}


def curve(cells: Iterable[CellRecord], quantity: str, subject: str = "") -> dict[int, Spread]:
    """Follow a quantity over the steps: at each, what the cells that reached it say together."""
    rows: dict[int, list[float]] = {}
    for cell in cells:
        for step, value in values(cell, quantity, subject).items():
            rows.setdefault(step, []).append(value)
    spreads = {step: spread(row) for step, row in sorted(rows.items())}
    return {step: found for step, found in spreads.items() if found is not None}


def shown_unit(cell: CellRecord) -> dict[str, dict[int, float]]:
    """Give the percentiles of what reaches the sigmoid that is shown."""
    return {name: values(cell, name, SHOWN) for name in PERCENTILES}


def summarise(record: Record, arm: str) -> ArmSummary:
    """Reduce the cells of an arm to the numbers of the tables."""
    cells = measured_cells(record, arm)
    whole = [cell for cell in cells if not values(cell, "diverged")]
    reached = {int(cell.factors["seed"]): _first_step(cell, _common_accuracy(record, cell)) for cell in whole}
    return ArmSummary(
        arm=arm,
        seeds=len(record.config["seeds"]),
        measured=len(cells),
        diverged_at_step=tuple(step for cell in cells for step in values(cell, "diverged")),
        test_accuracy=spread(_last(cell, "test_accuracy") for cell in whole),
        train_loss=spread(_last(cell, "train_loss") for cell in whole),
        steps_to_common=spread(step for step in reached.values() if step is not None),
        common_missed=sum(step == math.inf for step in reached.values()),
        drift=spread(_middle(cell, "drift") for cell in whole),
        path=spread(_middle(cell, "path") for cell in whole),
        width_ratio=spread(_middle(cell, "width_ratio") for cell in whole),
        eval_drift=spread(_middle(cell, "eval_drift") for cell in whole),
        eval_path=spread(_middle(cell, "eval_path") for cell in whole),
        eval_width_ratio=spread(_middle(cell, "eval_width_ratio") for cell in whole),
        seconds=spread(cell.seconds for cell in whole if cell.seconds is not None),
    )


def findings(record: Record, arms: Sequence[ArmSummary]) -> dict[str, Any]:
    """Everything above, and the curves, for ``summary.json``."""
    curves = {arm.arm: curve(measured_cells(record, arm.arm), "test_accuracy") for arm in arms}
    return {
        "arms": {arm.arm: asdict(arm) for arm in arms},
        "sigmoids": {arm.arm: _sigmoids(measured_cells(record, arm.arm)) for arm in arms},
        "test_accuracy": {
            arm: {step: asdict(found) for step, found in points.items()} for arm, points in curves.items()
        },
        "shown_unit": {cell.name: shown_unit(cell) for arm in arms for cell in measured_cells(record, arm.arm)[:1]},
    }


def _sigmoids(cells: Sequence[CellRecord]) -> dict[str, dict[str, Any] | None]:
    """Give the spread of each shift over all sigmoids of all seeds."""
    names = [f"{mode}{name}" for mode in ("", "eval_") for name in ("drift", "path", "width_ratio")]
    found = {name: spread(value for cell in cells for value in units(cell, name).values()) for name in names}
    return {name: asdict(all_) if all_ else None for name, all_ in found.items()}


def _last(cell: CellRecord, quantity: str) -> float:
    found = values(cell, quantity)
    return found[max(found)] if found else math.nan


def _middle(cell: CellRecord, quantity: str) -> float:
    """Median over the sigmoids; one whose input has no width any more counts as infinitely far."""
    found = [math.inf if math.isnan(value) else value for value in units(cell, quantity).values()]
    return statistics.median(found) if found else math.nan


def _common_accuracy(record: Record, cell: CellRecord) -> float | None:
    """Give what batch norm and no normalization both end with or above in this seed; None where either is missing."""
    arms = [str(arm) for arm in record.config["arms"]]
    pair = (batch_arm(arms), plain_arm(arms))
    ends = [
        _last(other, "test_accuracy")
        for arm in pair
        if arm is not None
        for other in measured_cells(record, arm)
        if other.factors["seed"] == cell.factors["seed"] and not values(other, "diverged")
    ]
    return min(ends) if len(ends) == len(pair) else None


def _first_step(cell: CellRecord, accuracy: float | None) -> float | None:
    """Give the first measured step with this accuracy; infinite where it was never there."""
    if accuracy is None:
        return None
    found = values(cell, "test_accuracy")
    return min((step for step in sorted(found) if found[step] >= accuracy), default=math.inf)

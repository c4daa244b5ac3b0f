"""Networks that differ only in their seed, reduced to numbers and to spreads over the seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from steadynorm.lab.describe.names import arm_label
from steadynorm.reporting.records import Cell, Record
from steadynorm.reporting.seeds import Spread, spread
from steadynorm.reporting.words import listing

__all__ = ["Arm", "Reduction", "arms_at", "final", "finals", "if_finished", "points_of"]

Reduction = Callable[[Cell], float]
"""One network's measurements -> a number; NaN without one."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Networks that differ only in their seed, and their quantities: ``arm["val_accuracy"]`` over the seeds."""

    arm: str
    cells: tuple[Cell, ...]
    """The networks, one for each planned seed."""
    values: Mapping[str, Sequence[float]]
    """Quantity -> its value for each network, NaN without one."""
    at: Mapping[str, Any] = field(default_factory=dict)
    """Its point in the grid: factor -> value."""

    @classmethod
    def of(cls, arm: str, cells: Iterable[Cell], quantities: Mapping[str, Reduction], **own: Any) -> Self:  # noqa: ANN401
        """Reduce each network to one number of each quantity; ``own``: further fields."""
        cells = tuple(cells)
        values = {name: [*map(one, cells)] for name, one in quantities.items()}
        return cls(arm=arm, cells=cells, values=values, **own)

    def __getitem__(self, quantity: str) -> Spread | None:
        return spread(self.values[quantity])

    def mean(self, quantity: str) -> float:
        """Average a quantity over the seeds; NaN if none has it."""
        found = self[quantity]
        return found.mean if found else math.nan

    @property
    def spreads(self) -> dict[str, Spread | None]:
        """Every quantity over the seeds."""
        return {name: spread(values) for name, values in self.values.items()}

    @property
    def label(self) -> str:
        """Its name in a sentence."""
        return arm_label(self.arm)

    @property
    def seeds(self) -> int:
        """Number of planned networks."""
        return len(self.cells)

    @property
    def ended(self) -> list[Cell]:
        """The networks that finished or diverged."""
        return [cell for cell in self.cells if cell.has_ended]

    @property
    def waiting(self) -> int:
        """Unfinished networks."""
        return self.seeds - len(self.ended)

    @property
    def diverged_at_step(self) -> tuple[int, ...]:
        """First step without a finite loss, for each network that diverged."""
        return tuple(cell.diverged_at_step or 0 for cell in self.cells if cell.status == "diverged")

    @property
    def lost(self) -> str:
        """Which networks diverged, and when; empty if none did."""
        steps = self.diverged_at_step
        who = "" if self.seeds == 1 else f"{len(steps)} of {self.seeds} "
        return f"{who}diverged at step {listing([f'{step:,}' for step in steps])}" if steps else ""

    @property
    def is_lost(self) -> bool:
        """Whether every network diverged."""
        return 0 < self.seeds == len(self.diverged_at_step)

    @property
    def exploded(self) -> str:
        """The same as :attr:`lost` in the article's word."""
        return self.lost.replace("diverged", "exploded")

    def as_json(self) -> dict[str, Any]:
        """Return its point, the state of its networks, and every quantity over the seeds."""
        counts = {"seeds": self.seeds, "waiting": self.waiting, "exploded_at_step": self.diverged_at_step}
        return {**self.at, **counts, **self.spreads}


def points_of(**factors: Sequence[Any]) -> list[dict[str, Any]]:
    """Return every point of a grid, as factor -> value, in the order of the factors' values; the last changes first."""
    return [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]


def arms_at(
    record: Record,
    quantities: Mapping[str, Reduction],
    *,
    by: str = "arm",
    **factors: Any,  # noqa: ANN401 (of several types)
) -> list[Arm]:
    """Reduce the networks at each point of a grid; those with a purpose are skipped.

    Args:
        record: record with the networks.
        quantities: quantities of each network.
        by: the factor that names the arms.
        factors: name of a factor -> its values.
    """
    points = points_of(**factors)
    return [Arm.of(str(one[by]), record.select(purpose=None, **one), quantities, at=one) for one in points]


def if_finished(reduction: Reduction) -> Reduction:
    """Reduce a network that finished."""
    return lambda cell: reduction(cell) if cell.status == "finished" else math.nan


def final(quantity: str) -> Reduction:
    """Take the last value of a network that finished."""
    return if_finished(lambda cell: cell.last(quantity))


def finals(runs: Iterable[Cell], quantity: str = "val_accuracy") -> dict[int, float]:
    """Return seed -> last value of a quantity, of the networks that finished."""
    return {run.factors["seed"]: run.last(quantity) for run in runs if run.status == "finished"}

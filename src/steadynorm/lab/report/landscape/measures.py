"""Numbers of a look around, and of an arm: over the looks of each network, then over the networks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from steadynorm.lab.analysis import Spread, spread
from steadynorm.lab.report.landscape.courses import ArmCourses, Look, Reach
from steadynorm.lab.report.quantities import number, percent

__all__ = ["QUANTITIES", "Quantity", "find_quantity", "over_looks", "ratio"]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number of a look."""

    key: str
    title: str
    label: str
    """For the head of a column."""
    value: Callable[[Look], float]
    centre: Callable[[Sequence[float]], float] = statistics.median
    """Of the looks of a network."""
    shown: Callable[[float | None], str] = number


QUANTITIES = (
    Quantity(
        key="loss_range",
        title="Range of the loss along the gradient",
        label="Range of the loss",
        value=lambda look: _range(reach.loss for reach in look.rate),
    ),
    Quantity(
        key="gradient_change",
        title="Change of the gradient along itself",
        label="Change of the gradient",
        value=lambda look: _largest(reach.change for reach in look.rate),
    ),
    Quantity(
        key="smoothness",
        title="Effective smoothness β",
        label="β",
        value=lambda look: _largest(reach.smoothness for reach in look.rate),
    ),
    Quantity(
        key="raised",
        title="Looks at which the longest step raises the loss",
        label="Longest step raises the loss",
        value=lambda look: _is_raised(look, look.rate),
        centre=statistics.fmean,
        shown=percent,
    ),
    Quantity(
        key="free_loss_range",
        title="Range of the loss, steps in proportion to the weights",
        label="Range of the loss",
        value=lambda look: _range(reach.loss for reach in look.weights),
    ),
    Quantity(
        key="free_gradient_change",
        title="Change of the gradient over its norm, steps in proportion to the weights",
        label="Change of the gradient / ‖g‖",
        value=lambda look: _over(_largest(reach.change for reach in look.weights), look.gradient_norm),
    ),
    Quantity(
        key="free_smoothness",
        title="Effective smoothness times ‖w‖²",
        label="β ‖w‖²",
        value=lambda look: _largest(reach.smoothness for reach in look.weights) * look.weight_norm**2,
    ),
    Quantity(
        key="free_raised",
        title="Looks at which the longest step in proportion raises the loss",
        label="Longest step raises the loss",
        value=lambda look: _is_raised(look, look.weights),
        centre=statistics.fmean,
        shown=percent,
    ),
    Quantity(
        key="gradient_norm",
        title="Norm of the gradient",
        label="‖g‖",
        value=lambda look: look.gradient_norm,
    ),
    Quantity(
        key="weight_norm",
        title="Norm of the weights",
        label="‖w‖",
        value=lambda look: look.weight_norm,
    ),
    Quantity(
        key="relative_step",
        title="Step of one learning rate over the weights",
        label="lr ‖g‖ / ‖w‖",
        value=lambda look: _over(look.learning_rate * look.gradient_norm, look.weight_norm),
    ),
    Quantity(
        key="rounding",
        title="Distance of bfloat16's gradient from float32's, over its norm",
        label="Rounding",
        value=lambda look: look.rounding,
    ),
)


def find_quantity(key: str) -> Quantity:
    """Look a quantity up."""
    return next(one for one in QUANTITIES if one.key == key)


def over_looks(arm: ArmCourses, quantity: Quantity) -> Spread | None:
    """Give a quantity over a network's looks, their median unless it says otherwise, and its spread over networks."""
    return spread(_centres(arm, quantity).values())


def ratio(arm: ArmCourses, other: ArmCourses, quantity: Quantity) -> Spread | None:
    """Divide what ``arm`` has over its looks by what ``other`` has, seed by seed."""
    over, under = _centres(arm, quantity), _centres(other, quantity)
    return spread(over[seed] / under[seed] for seed in over if under.get(seed))


def _centres(arm: ArmCourses, quantity: Quantity) -> dict[int, float]:
    """By seed, over the looks that have a number; one of infinity counts, as the largest."""
    values = {one.seed: [quantity.value(look) for look in one.looks] for one in arm.courses}
    known = {seed: [value for value in several if not math.isnan(value)] for seed, several in values.items()}
    return {seed: quantity.centre(several) for seed, several in known.items() if several}


def _is_raised(look: Look, reaches: Sequence[Reach]) -> float:
    """Give 1 where the longest step ends above the loss or leaves the numbers, else 0; NaN where there is no loss."""
    return math.nan if math.isnan(look.loss) else float(not reaches[-1].loss <= look.loss)


def _over(value: float, by: float) -> float:
    return value / by if by else math.nan


def _largest(values: Iterable[float]) -> float:
    """Give the largest; infinity where one is no number, because the step left the numbers."""
    return max(math.inf if math.isnan(value) else value for value in values)


def _range(values: Iterable[float]) -> float:
    found: Sequence[float] = list(values)
    return _largest(found) - min(found) if all(math.isfinite(value) for value in found) else math.inf

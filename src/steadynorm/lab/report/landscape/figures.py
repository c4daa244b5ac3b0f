"""The figures of the loss around the weights."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadynorm.lab.records import Record
from steadynorm.lab.report.figure import Drawing, canvas, head, log_if_wide, percent_ticks, render, series
from steadynorm.lab.report.landscape.courses import ArmCourses, Look, Reach
from steadynorm.lab.report.landscape.measures import find_quantity
from steadynorm.lab.report.wording import arm_label, listing, position

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_all"]


_Place = tuple[float, float, float, float]
"""Horizontal place, middle, low, high."""

OVER_SEEDS = "Line: median of the seeds. Band: their lowest to highest value."
ALONG = "Band: over the lengths, lowest to highest; line: {line}. Both are medians of the seeds."


@dataclass(frozen=True, kw_only=True)
class _Line:
    label: str
    position: int
    points: Sequence[_Place]
    diverged_at: Sequence[float]


def draw_all(record: Record, arms: Sequence[ArmCourses]) -> dict[str, tuple[Drawing, ...]]:
    """Draw every figure that the record has numbers for.

    Returns:
        figures by the section they belong to: rate, weights, scale, training.
    """
    if not any(course.looks for arm in arms for course in arm.courses):
        return {"rate": (), "weights": (), "scale": (), "training": ()}
    return {
        "rate": _drawn(*_in_rates(record, arms)),
        "weights": _drawn(*_in_weights(record, arms)),
        "scale": _drawn(
            _over_steps(record, arms, "gradient_norm", "Of all parameters."),
            _over_steps(record, arms, "weight_norm", "Of all convolutions and linear layers."),
            _over_steps(record, arms, "relative_step", "How far one step, momentum aside, moves the weights."),
            _layers(record, arms),
        ),
        "training": _drawn(*_epochs(record, arms)),
    }


def _in_rates(record: Record, arms: Sequence[ArmCourses]) -> Iterable[Drawing | None]:
    where = f"After steps of {_lengths(record, 'rate_steps')} learning rates."
    title = "Loss along the gradient"
    yield _along(record, arms, ("loss", title, where), lambda look: _losses(look, look.rate))
    title = "Change of the gradient along itself"
    yield _along(record, arms, ("gradient_change", title, where), lambda look: _changes(look.rate))
    yield _over_steps(record, arms, "smoothness", f"Largest ‖change of the gradient‖ / ‖step‖. {where}")


def _in_weights(record: Record, arms: Sequence[ArmCourses]) -> Iterable[Drawing | None]:
    where = f"After steps of {_lengths(record, 'weight_steps')} times the weights' norm."
    title = "Loss along the gradient, steps in proportion"
    yield _along(record, arms, ("free_loss", title, where), lambda look: _losses(look, look.weights))
    title = "Change of the gradient over its norm"
    yield _along(record, arms, ("free_gradient_change", title, where), _relative_changes)
    yield _over_steps(record, arms, "free_smoothness", f"What β is where the weights have norm 1. {where}")


def _lengths(record: Record, flag: str) -> str:
    return listing([f"{length:g}" for length in record.config[flag]])


def _drawn(*drawings: Drawing | None) -> tuple[Drawing, ...]:
    """Leave out those for which there is no finite number."""
    return tuple(one for one in drawings if one)


def _losses(look: Look, reaches: Sequence[Reach]) -> list[float]:
    return [look.loss, *(reach.loss for reach in reaches)]


def _changes(reaches: Sequence[Reach]) -> list[float]:
    """Give the changes, first that of the middle length, of two the shorter."""
    values = [reach.change for reach in reaches]
    return [values[(len(values) - 1) // 2], *values]


def _relative_changes(look: Look) -> list[float]:
    return [change / look.gradient_norm if look.gradient_norm else math.nan for change in _changes(look.weights)]


def _along(
    record: Record,
    arms: Sequence[ArmCourses],
    what: tuple[str, str, str],
    values: Callable[[Look], Sequence[float]],
) -> Drawing | None:
    """Draw a band over the lengths of the steps; ``values`` are those of a look, first the line's."""
    name, title, where = what
    lines = [_line(record, arm, [_band_at(looks, values) for looks in _together(arm)]) for arm in arms]
    middle = "the loss before the step" if name.endswith("loss") else "a step of the middle length"
    return _draw(lines, name=name, title=title, caption=f"{where} {ALONG.format(line=middle)}")


def _band_at(looks: Sequence[Look], values: Callable[[Look], Sequence[float]]) -> _Place:
    found = [[value for value in values(look) if math.isfinite(value)] or [math.nan] for look in looks]
    lines, lows, highs = [one[0] for one in found], [min(one) for one in found], [max(one) for one in found]
    return looks[0].step, _median(lines), _median(lows), _median(highs)


def _over_steps(record: Record, arms: Sequence[ArmCourses], key: str, caption: str) -> Drawing | None:
    quantity = find_quantity(key)
    lines = [
        _line(record, arm, [_spread_at(looks[0].step, map(quantity.value, looks)) for looks in _together(arm)])
        for arm in arms
    ]
    return _draw(lines, name=key, title=quantity.title, caption=f"{caption} {OVER_SEEDS}")


def _layers(record: Record, arms: Sequence[ArmCourses]) -> Drawing | None:
    """Draw, of each layer, the median over the looks of ||gradient|| / ||weight||."""
    names = list(next(course.looks[0].layers for arm in arms for course in arm.courses if course.looks))
    lines = [
        _line(record, arm, [_spread_at(place, _layer(arm, name)) for place, name in enumerate(names)]) for arm in arms
    ]
    return _draw(
        lines,
        name="layers",
        title="Gradient over weight, by layer",
        caption=f"‖gradient‖ / ‖weight‖, median over the looks. {OVER_SEEDS}",
        layers=names,
    )


def _layer(arm: ArmCourses, name: str) -> list[float]:
    return [_median([look.layers[name] for look in course.looks]) for course in arm.courses if course.looks]


def _epochs(record: Record, arms: Sequence[ArmCourses]) -> Iterable[Drawing | None]:
    shown = (
        ("train_loss", "Training loss", "Mean cross-entropy in nats over an epoch, while the weights move."),
        ("val_accuracy", "Validation accuracy", "After each epoch, in evaluation mode, without noise."),
    )
    for key, title, caption in shown:
        lines = []
        for arm in arms:
            steps = sorted({epoch.step for course in arm.courses for epoch in course.epochs})
            rows = {
                step: [one for course in arm.courses for one in course.epochs if one.step == step] for step in steps
            }
            places = [_spread_at(step, [getattr(one, key) for one in found]) for step, found in rows.items()]
            lines.append(_line(record, arm, places))
        yield _draw(lines, name=key, title=title, caption=f"{caption} {OVER_SEEDS}", is_share=key == "val_accuracy")


def _together(arm: ArmCourses) -> list[list[Look]]:
    """Give the looks at each step, of all networks that came so far."""
    found: dict[int, list[Look]] = {}
    for course in arm.courses:
        for look in course.looks:
            found.setdefault(look.step, []).append(look)
    return [found[step] for step in sorted(found)]


def _spread_at(place: float, values: Iterable[float]) -> _Place:
    finite = [value for value in values if math.isfinite(value)] or [math.nan]
    return place, _median(finite), min(finite), max(finite)


def _median(values: Iterable[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return statistics.median(finite) if finite else math.nan


def _line(record: Record, arm: ArmCourses, points: Sequence[_Place]) -> _Line:
    return _Line(
        label=arm_label(arm.arm),
        position=position(record, arm.arm),
        points=[point for point in points if math.isfinite(point[1])],
        diverged_at=[course.diverged_at for course in arm.diverged if course.diverged_at is not None],
    )


def _draw(
    lines: Sequence[_Line], *, name: str, title: str, caption: str, is_share: bool = False, layers: Sequence[str] = ()
) -> Drawing | None:
    from matplotlib.ticker import MaxNLocator

    shown = [line for line in lines if line.points]
    if not shown:
        return None
    with canvas(width=5.4, height=3.3) as (figure, axes):
        if layers:
            axes.set_xticks(range(len(layers)), layers, rotation=30, ha="right")
        else:
            axes.set_xlabel("training step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for line in shown:
            _draw_line(axes, line, marked=bool(layers))
        if is_share:
            percent_ticks(axes.yaxis)
        else:
            log_if_wide(axes, "y", [value for line in shown for point in line.points for value in point[1:]])
        handles = [axes.plot([], [], **series(line.position))[0] for line in shown]
        head(axes, title, handles, [line.label for line in shown])
        crossed = any(line.diverged_at for line in shown) and not layers
        lost = " A cross: one of its networks diverged behind it." if crossed else ""
        return render(figure, name=name, title=title, caption=caption + lost)


def _draw_line(axes: Axes, line: _Line, *, marked: bool) -> None:
    places, middles, lows, highs = zip(*line.points, strict=True)
    style = series(line.position)
    axes.plot(places, middles, marker="o" if marked or len(places) < 4 else "", markersize=4, **style)
    axes.fill_between(places, lows, highs, color=style["color"], alpha=0.17, linewidth=0)
    for step in () if marked else line.diverged_at:
        before = [point for point in line.points if point[0] < step]
        if before:
            place, middle = before[-1][:2]
            axes.plot(
                place, middle, marker="X", markersize=9, color=style["color"], markeredgecolor="#ffffff", zorder=5
            )

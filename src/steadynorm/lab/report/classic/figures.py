"""The figures of the sigmoid network: accuracy and loss over the steps, and what reaches its sigmoids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steadynorm.lab.records import CellRecord, Record
from steadynorm.lab.report.classic.summary import curve, measured_cells, shown_unit, units
from steadynorm.lab.report.figure import (
    DASHES,
    SERIES,
    Drawing,
    canvas,
    head,
    log_if_wide,
    percent_ticks,
    render,
    series,
)
from steadynorm.lab.report.wording import arm_label, position

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_accuracy", "draw_loss", "draw_percentiles", "draw_shifts"]

BAND = "Line: mean of the seeds. Band: their lowest to highest value."
MARKERS = "ox^sDv"
LABELS = {"p15": "15th percentile", "p50": "median", "p85": "85th percentile"}


def draw_accuracy(record: Record) -> Drawing | None:
    """Draw test accuracy over the steps; None where nothing is measured."""
    return _draw_curves(record, "test_accuracy", "Test accuracy", "In evaluation mode, from the first step on.")


def draw_loss(record: Record) -> Drawing | None:
    """Draw training loss over the steps; None where nothing is measured."""
    caption = "Mean cross-entropy in nats over the steps since the last point, in training mode."
    return _draw_curves(record, "train_loss", "Training loss", caption)


def draw_percentiles(record: Record) -> tuple[Drawing, ...]:
    """Draw, for each arm's first measured seed, the percentiles of what reaches one sigmoid, all on one scale."""
    cells = {arm: measured_cells(record, arm) for arm in map(str, record.config["arms"])}
    shown = {arm: (found[0], shown_unit(found[0])) for arm, found in cells.items() if found}
    every = [value for _, lines in shown.values() for line in lines.values() for value in line.values()]
    if not every:
        return ()
    margin = 0.04 * (max(every) - min(every)) or 1.0
    limits = (min(every) - margin, max(every) + margin)
    return tuple(_draw_unit(record, arm, cell, lines, limits) for arm, (cell, lines) in shown.items())


def draw_shifts(record: Record) -> Drawing | None:
    """Draw a point for every sigmoid of the last hidden layer: how far its input moved, how much its width changed."""
    arms = [arm for arm in map(str, record.config["arms"]) if _shifts(measured_cells(record, arm))]
    if not arms:
        return None
    points = {arm: _shifts(measured_cells(record, arm)) for arm in arms}
    title = "How far each sigmoid's input shifts"
    with canvas() as (figure, axes):
        handles = []
        for arm, pairs in points.items():
            look = _marker(position(record, arm))
            axes.plot([pair[0] for pair in pairs], [pair[1] for pair in pairs], **look, markersize=3.2, alpha=0.55)
            handles += axes.plot([], [], **look, markersize=5)
        log_if_wide(axes, "x", [pair[0] for pairs in points.values() for pair in pairs])
        log_if_wide(axes, "y", [pair[1] for pairs in points.values() for pair in pairs])
        axes.set_xlabel("farthest that the median was from its end, in final widths")
        axes.set_ylabel("largest over smallest width")
        head(axes, title, handles, [arm_label(arm) for arm in arms])
        caption = "A point for each sigmoid of the last hidden layer, all seeds; lower left is steadier."
        return render(figure, name="shifts", title=title, caption=caption)


def _marker(place: int) -> dict[str, Any]:
    return {"color": SERIES[place % len(SERIES)], "marker": MARKERS[place % len(MARKERS)], "linestyle": "none"}


def _shifts(cells: Sequence[CellRecord]) -> list[tuple[float, float]]:
    """Give drift and change of width of every sigmoid that has both, which takes an input that varies."""
    pairs = [
        (drift, units(cell, "width_ratio")[unit]) for cell in cells for unit, drift in units(cell, "drift").items()
    ]
    return [pair for pair in pairs if math.isfinite(sum(pair))]


def _draw_curves(record: Record, quantity: str, title: str, caption: str) -> Drawing | None:

    arms = [arm for arm in map(str, record.config["arms"]) if measured_cells(record, arm)]
    if not arms:
        return None
    with canvas() as (figure, axes):
        shown = [value for arm in arms for value in _draw_arm(axes, record, arm, quantity)]
        if quantity.endswith("accuracy"):
            percent_ticks(axes.yaxis)
        else:
            log_if_wide(axes, "y", shown)
        _step_axis(axes, record)
        handles = [axes.plot([], [], **series(position(record, arm)))[0] for arm in arms]
        head(axes, title, handles, [arm_label(arm) for arm in arms])
        many = any(len(measured_cells(record, arm)) > 1 for arm in arms)
        return render(figure, name=quantity, title=title, caption=f"{caption} {BAND}" if many else caption)


def _draw_arm(axes: Axes, record: Record, arm: str, quantity: str) -> list[float]:
    """Draw line and band; return the values that the axis has to hold."""
    points = {step: point for step, point in curve(measured_cells(record, arm), quantity).items() if step > 0}
    style = series(position(record, arm))
    axes.plot(list(points), [point.mean for point in points.values()], **style)
    low, high = ([getattr(point, side) for point in points.values()] for side in ("low", "high"))
    if low != high:
        axes.fill_between(list(points), low, high, color=style["color"], alpha=0.17, linewidth=0)
    return [*low, *high]


def _draw_unit(
    record: Record, arm: str, cell: CellRecord, lines: dict[str, dict[int, float]], limits: tuple[float, float]
) -> Drawing:
    title = f"Input of one sigmoid: {arm_label(arm)}"
    colour = series(position(record, arm))["color"]
    with canvas() as (figure, axes):
        handles = []
        for name, dashes in zip(LABELS, (DASHES[2], DASHES[0], DASHES[1]), strict=True):
            later = {step: value for step, value in lines[name].items() if step > 0}
            handles += axes.plot(list(later), list(later.values()), color=colour, linestyle=dashes)
        axes.set_ylim(*limits)
        _step_axis(axes, record)
        head(axes, title, handles, list(LABELS.values()))
        seed = cell.factors["seed"]
        caption = f"First sigmoid of the last hidden layer, over the test images in training mode; seed {seed}."
        return render(figure, name=f"percentiles_{arm}", title=title, caption=caption)


def _step_axis(axes: Axes, record: Record) -> None:
    steps = int(record.config["steps"])
    axes.set_xlabel("step")
    log_if_wide(axes, "x", (1, steps))
    axes.set_xlim(1, max(2, steps))

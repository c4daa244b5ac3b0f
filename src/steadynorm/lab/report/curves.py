"""Curves over epochs, one for each arm: a mean line, a band, and a cross where a run diverged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from steadynorm.lab.analysis import ArmRuns, Point, curve
from steadynorm.lab.records import Epoch
from steadynorm.lab.report.figure import MUTED, Drawing, canvas, head, log_if_wide, percent_ticks, render, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Column", "Curve", "draw_curves"]

Value = Callable[[Epoch], float]


@dataclass(frozen=True, kw_only=True)
class Column:
    """Which column of the epochs a figure shows, and how."""

    name: str
    title: str
    value: Value
    is_share: bool = False
    """In [0, 1], shown as a percentage."""
    step_band: tuple[Value, Value] | None = None
    """The spread over an epoch's steps, shown where an arm has one seed."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The runs behind one line."""

    label: str
    position: int
    """Of the arm among all arms: decides colour and dashes."""
    runs: ArmRuns


def draw_curves(
    curves: Sequence[Curve],
    column: Column,
    *,
    name: str,
    caption: str,
    epochs: int,
    milestones: Sequence[int],
) -> Drawing:
    """Draw one column of every arm against the epoch.

    Args:
        curves: one for each arm.
        column: what to draw.
        name: file name without its ending.
        caption: what the reader has to know; the meaning of the band is added.
        epochs: planned; the axis spans them all, however far the runs came.
        milestones: epochs after which the learning rate is lowered.
    """
    from matplotlib.ticker import MaxNLocator

    with canvas() as (figure, axes):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, epochs + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        shown: list[float] = []
        for item in curves:
            shown += _draw(axes, item, column)
        if column.is_share:
            percent_ticks(axes.yaxis)
        else:
            log_if_wide(axes, "y", shown)
        for epoch in milestones:
            if epoch < epochs:
                axes.axvline(epoch + 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        for item in curves:
            _mark_divergence(axes, item, column)
        handles = [axes.plot([], [], **series(item.position))[0] for item in curves]
        head(axes, column.title, handles, [item.label for item in curves])
        lowered = "Dotted: the learning rate is lowered." if any(m < epochs for m in milestones) else ""
        words = " ".join(part for part in (caption, _band(curves, column), lowered) if part)
        return render(figure, name=name, title=column.title, caption=words)


def _draw(axes: Axes, item: Curve, column: Column) -> list[float]:
    """Draw line and band; return the values that the axis has to hold."""
    single = len(item.runs.runs) < 2
    points = curve(item.runs.runs, column.value, band=column.step_band if single else None)
    if not points:
        return []
    epochs = [point.epoch for point in points]
    style = series(item.position)
    marker = "o" if len(points) < 4 else ""
    axes.plot(epochs, [point.mean for point in points], marker=marker, markersize=4, **style)
    if _has_band(points):
        axes.fill_between(
            epochs,
            [point.low for point in points],
            [point.high for point in points],
            color=style["color"],
            alpha=0.17,
            linewidth=0,
        )
    return [value for point in points for value in (point.low, point.mean, point.high)]


def _has_band(points: Sequence[Point]) -> bool:
    return any(point.high > point.low for point in points)


def _mark_divergence(axes: Axes, item: Curve, column: Column) -> None:
    """Put a cross on the last point of every run that diverged; at the foot of the axes where it has none."""
    for run in item.runs.diverged:
        known = [epoch for epoch in run.epochs if math.isfinite(column.value(epoch))]
        style: dict[str, Any] = {
            "marker": "X",
            "markersize": 9,
            "color": series(item.position)["color"],
            "markeredgecolor": "#ffffff",
            "clip_on": False,
            "zorder": 5,
        }
        if known:
            axes.plot(known[-1].epoch, column.value(known[-1]), **style)
        else:
            axes.plot(0.5, 0.0, transform=axes.get_xaxis_transform(), **style)


def _band(curves: Sequence[Curve], column: Column) -> str:
    crossed = " A cross marks the last epoch of a run that diverged." if any(c.runs.diverged for c in curves) else ""
    if any(len(item.runs.runs) > 1 for item in curves):
        return f"Line: mean of the seeds. Band: their lowest to highest value.{crossed}"
    if column.step_band is not None:
        return f"Line: mean over the epoch's steps. Band: 5th to 95th percentile of the steps.{crossed}"
    return crossed.strip()

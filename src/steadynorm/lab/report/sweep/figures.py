"""The figures of a sweep: accuracy over the learning rate, and the largest rate that trains over the depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from steadynorm.lab.records import Record
from steadynorm.lab.report.figure import Drawing, canvas, head, percent_ticks, render, series
from steadynorm.lab.report.quantities import rate
from steadynorm.lab.report.sweep.summary import Border, Place, geometric_mean
from steadynorm.lab.report.wording import arm_label, position

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_accuracy", "draw_borders"]

CROSS: dict[str, Any] = {"marker": "X", "markersize": 9, "markeredgecolor": "#ffffff", "clip_on": False, "zorder": 5}


def draw_accuracy(record: Record, places: Sequence[Place]) -> Iterator[Drawing]:
    """Draw a figure for every depth and batch size at which a run has ended."""
    for depth, batch_size in dict.fromkeys((place.depth, place.batch_size) for place in places):
        here = [place for place in places if (place.depth, place.batch_size) == (depth, batch_size)]
        if any(place.accuracy or place.exploded_at_step for place in here):
            yield _draw_accuracy(record, here, depth, batch_size)


def draw_borders(record: Record, borders: Sequence[Border]) -> Iterator[Drawing]:
    """Draw the largest rate that trains for every depth, a figure for each batch size; nothing before one is known."""
    for batch_size in dict.fromkeys(border.batch_size for border in borders):
        here = [border for border in borders if border.batch_size == batch_size and border.rates]
        if here:
            yield _draw_borders(record, here, batch_size)


def _draw_accuracy(record: Record, places: Sequence[Place], depth: int, batch_size: int) -> Drawing:

    title = f"Validation accuracy, {depth} convolutions, batch {batch_size}"
    arms = list(dict.fromkeys(place.arm for place in places))
    with canvas() as (figure, axes):
        for arm in arms:
            _draw_arm(axes, [place for place in places if place.arm == arm], series(position(record, arm)))
        _rate_axis(axes, "x", [place.lr for place in places])
        percent_ticks(axes.yaxis)
        axes.margins(0.08)
        axes.set_xlabel("learning rate")
        handles = [axes.plot([], [], **series(position(record, arm)))[0] for arm in arms]
        head(axes, title, handles, [arm_label(arm) for arm in arms])
        crosses = " A cross at the foot: the loss of a run was no longer finite."
        exploded = any(place.exploded_at_step for place in places)
        caption = (
            f"After the last epoch. Line: mean of the seeds. Band: lowest to highest.{crosses if exploded else ''}"
        )
        return render(figure, name=f"accuracy_depth{depth}_batch{batch_size}", title=title, caption=caption)


def _draw_arm(axes: Axes, places: Sequence[Place], style: dict[str, Any]) -> None:
    known = sorted(((place.lr, place.accuracy) for place in places if place.accuracy), key=lambda pair: pair[0])
    rates = [lr for lr, _ in known]
    axes.plot(rates, [value.mean for _, value in known], marker="o", markersize=4.5, **style)
    lows, highs = [value.low for _, value in known], [value.high for _, value in known]
    axes.fill_between(rates, lows, highs, color=style["color"], alpha=0.17, linewidth=0)
    for place in places:
        if place.exploded_at_step:
            axes.plot(place.lr, 0.0, color=style["color"], transform=axes.get_xaxis_transform(), **CROSS)


def _draw_borders(record: Record, borders: Sequence[Border], batch_size: int) -> Drawing:
    title = f"Largest learning rate that trains, batch {batch_size}"
    arms = list(dict.fromkeys(border.arm for border in borders))
    with canvas() as (figure, axes):
        for arm in arms:
            mine = sorted((border for border in borders if border.arm == arm), key=lambda border: border.depth)
            style = series(position(record, arm))
            depths = [border.depth for border in mine]
            means = [geometric_mean(border.rates) for border in mine]
            axes.plot(depths, means, marker="o", markersize=4.5, **style)
            for border in mine:
                axes.plot([border.depth] * len(border.rates), border.rates, "_", color=style["color"], markersize=11)
        _rate_axis(axes, "y", [])
        axes.set_xticks(sorted({border.depth for border in borders}))
        axes.margins(0.12)
        axes.set_xlabel("convolutions")
        handles = [axes.plot([], [], **series(position(record, arm)))[0] for arm in arms]
        head(axes, title, handles, [arm_label(arm) for arm in arms])
        caption = "By bisection, to within a factor of 1.5. Bars: seeds. Dots: their geometric mean."
        return render(figure, name=f"largest_rate_batch{batch_size}", title=title, caption=caption)


def _rate_axis(axes: Axes, which: str, rates: Sequence[float]) -> None:
    """Make a logarithmic axis of plain numbers, with a tick at each rate where they are given."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    if rates:
        axis.set_ticks(sorted(set(rates)))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: rate(value)))
    axis.set_minor_locator(NullLocator())

"""How each arm's own learning rate was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from steadynorm.lab.analysis import best_rate
from steadynorm.lab.records import Record, RunRecord
from steadynorm.lab.report.figure import Drawing, canvas, head, percent_ticks, render, series
from steadynorm.lab.report.quantities import rate
from steadynorm.lab.report.wording import arm_label, epochs_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_rates"]


def draw_rates(record: Record) -> Iterator[Drawing]:
    """Draw held-out accuracy against learning rate; nothing before a ``tune`` run has ended."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    ended = [run for run in record.runs if run.spec.purpose == "tune" and run.status in ("finished", "diverged")]
    if not ended:
        return
    title = "Held-out accuracy by learning rate"
    arms = [str(arm) for arm in record.config["arms"]]
    with canvas() as (figure, axes):
        for index, arm in enumerate(arms):
            mine = sorted((run for run in ended if run.spec.arm == arm), key=lambda run: run.spec.lr)
            _draw_arm(axes, mine, best_rate(mine, arm), series(index))
        axes.set_xscale("log")
        axes.set_xticks(sorted({run.spec.lr for run in ended}))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: rate(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        percent_ticks(axes.yaxis)
        axes.margins(0.08)
        axes.set_xlabel("learning rate")
        handles = [axes.plot([], [], **series(index))[0] for index in range(len(arms))]
        head(axes, title, handles, [arm_label(arm) for arm in arms])
        yield render(figure, name="rates", title=title, caption=_caption(ended))


def _draw_arm(axes: Axes, runs: Sequence[RunRecord], best: float | None, style: dict[str, Any]) -> None:
    ended = [run for run in runs if run.status == "finished" and run.epochs]
    points = [(run.spec.lr, run.epochs[-1].val_accuracy) for run in ended]
    points = [point for point in points if math.isfinite(point[1])]
    axes.plot([lr for lr, _ in points], [value for _, value in points], marker="o", markersize=4.5, **style)
    chosen = [point for point in points if point[0] == best]
    axes.plot(
        [lr for lr, _ in chosen],
        [value for _, value in chosen],
        "o",
        markersize=11,
        markerfacecolor="none",
        markeredgecolor=style["color"],
        markeredgewidth=1.4,
    )
    for run in (run for run in runs if run.status == "diverged"):
        axes.plot(
            run.spec.lr,
            0.0,
            "X",
            markersize=9,
            color=style["color"],
            markeredgecolor="#ffffff",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            zorder=5,
        )


def _caption(runs: Sequence[RunRecord]) -> str:
    epochs = max(run.spec.epochs for run in runs)
    diverged = any(run.status == "diverged" for run in runs)
    crosses = " A cross at the foot marks a rate at which the run diverged." if diverged else ""
    return f"After {epochs_label(epochs)}, on training images kept aside. A ring marks an arm's best rate.{crosses}"

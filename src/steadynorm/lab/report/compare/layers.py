"""The gradient norm of each weight, layer by layer, at the first and the last epoch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from steadynorm.lab.analysis import Picture
from steadynorm.lab.records import LayerGradient, Record, RunRecord
from steadynorm.lab.report.figure import Drawing, canvas, head, log_if_wide, render, series
from steadynorm.lab.report.wording import arm_label, position

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_layers"]

Norm = tuple[float, float, float]
"""Mean, 5th and 95th percentile."""


def draw_layers(record: Record, picture: Picture) -> Iterator[Drawing]:
    """Draw the first epoch and the last one that any arm finished; nothing where no norms were kept."""
    epochs = [row.epoch for arm in picture.arms for run in arm.runs for row in run.layers]
    if not epochs:
        return
    yield _draw_epoch(record, picture, name="layers_first", epoch=min(epochs))
    if max(epochs) > min(epochs):
        yield _draw_epoch(record, picture, name="layers_last", epoch=max(epochs))


def _draw_epoch(record: Record, picture: Picture, *, name: str, epoch: int) -> Drawing:
    order = _layer_order(picture)
    title = f"Gradient norm of each weight, epoch {epoch}"
    arms = [arm for arm in picture.arms if arm.runs]
    with canvas(height=max(2.2, 1.25 + 0.24 * len(order))) as (figure, axes):
        shown: list[float] = []
        for index, arm in enumerate(arms):
            norms = _norms(arm.runs, epoch)
            shift = 0.56 * ((index + 0.5) / len(arms) - 0.5)
            places = [order.index(layer) + shift for layer in norms]
            _draw_arm(axes, places, list(norms.values()), series(position(record, arm.arm))["color"])
            shown += [value for norm in norms.values() for value in norm]
        axes.set_yticks(range(len(order)), order)
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        log_if_wide(axes, "x", shown)
        handles = [
            axes.plot([], [], "o", markersize=5, color=series(position(record, arm.arm))["color"])[0] for arm in arms
        ]
        head(axes, title, handles, [arm_label(arm.arm) for arm in arms])
        caption = "First layer on top. Dot: mean over the epoch's steps. Line: 5th to 95th percentile of the steps."
        return render(figure, name=name, title=title, caption=caption)


def _draw_arm(axes: Axes, places: Sequence[float], norms: Sequence[Norm], color: str) -> None:
    axes.hlines(
        places,
        [low for _, low, _ in norms],
        [high for _, _, high in norms],
        color=color,
        linewidth=1.4,
        alpha=0.55,
    )
    axes.plot([mean for mean, _, _ in norms], places, "o", markersize=5, color=color)


def _layer_order(picture: Picture) -> list[str]:
    rows = (row for arm in picture.arms for run in arm.runs for row in run.layers)
    return list(dict.fromkeys(row.layer for row in rows))


def _norms(runs: Sequence[RunRecord], epoch: int) -> dict[str, Norm]:
    """Norms by layer, averaged over the seeds; a layer whose norms are no numbers is left out."""
    rows: dict[str, list[LayerGradient]] = {}
    for row in (row for run in runs for row in run.layers if row.epoch == epoch):
        if all(math.isfinite(value) for value in (row.mean, row.p5, row.p95)):
            rows.setdefault(row.layer, []).append(row)
    return {layer: _average(found) for layer, found in rows.items()}


def _average(rows: Sequence[LayerGradient]) -> Norm:
    return (
        statistics.fmean(row.mean for row in rows),
        statistics.fmean(row.p5 for row in rows),
        statistics.fmean(row.p95 for row in rows),
    )

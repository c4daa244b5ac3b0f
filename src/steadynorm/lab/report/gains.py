"""A figure of gains and losses in accuracy, of several ways under several conditions."""

from __future__ import annotations

from collections.abc import Mapping

from steadynorm.lab.analysis import Spread
from steadynorm.lab.report.figure import MUTED, Drawing, canvas, head, render, series

__all__ = ["draw_gains"]


def draw_gains(
    gains: Mapping[str, Mapping[str, Spread]], *, name: str, title: str, caption: str, positions: Mapping[str, int]
) -> Drawing:
    """Draw a row for each way and in it a dot and its range for each condition.

    Args:
        gains: way -> condition -> differences of shares, drawn in percentage points.
        name: file name without its ending.
        title: of the figure.
        caption: what dots and ranges are.
        positions: condition -> its place among all, which decides its colour and its place in a row.
    """
    from matplotlib.ticker import FuncFormatter

    with canvas(height=1.3 + (0.14 + 0.11 * len(positions)) * len(gains)) as (figure, axes):
        for row, conditions in enumerate(gains.values()):
            for condition, gain in conditions.items():
                place = positions[condition]
                height = row + 0.7 * ((place + 0.5) / len(positions) - 0.5)
                color = series(place)["color"]
                axes.plot([gain.low, gain.high], [height, height], color=color, linewidth=1.4)
                axes.plot(gain.mean, height, "o", markersize=4.5, color=color)
        axes.axvline(0, color=MUTED, linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(gains)), list(gains))
        axes.set_ylim(len(gains) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+g}"))
        axes.set_xlabel("points")
        handles = [
            axes.plot([], [], "o", markersize=5, color=series(place)["color"])[0] for place in positions.values()
        ]
        head(axes, title, handles, list(positions))
        return render(figure, name=name, title=title, caption=caption)

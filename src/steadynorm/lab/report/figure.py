"""How every figure of a report looks, and how it becomes bytes that do not change from build to build."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from steadynorm.lab.report.quantities import percent

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["DASHES", "SERIES", "Drawing", "canvas", "head", "log_if_wide", "percent_ticks", "render", "series"]

INK, MUTED, GRID = "#1d2430", "#5b6472", "#d8dde4"

SERIES = ("#0072b2", "#d55e00", "#009e73", "#a8508a", "#b07d00", "#3d9bd3")
"""Okabe and Ito's colours, the light ones darkened until they stand out on white."""

DASHES = (
    "solid",
    (0, (5, 1.6)),
    (0, (1.2, 1.2)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (9, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
)
"""Told apart without colour too."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 2.2,
}

LEGEND_ROW = 40
"""Characters of series' names that fit into a row above the axes."""

VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", "#ffffff": "--surface"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A finished figure."""

    name: str
    """File name without its ending, and the prefix of every id inside the inline form."""
    title: str
    caption: str
    png: bytes
    svg: bytes
    """Stands alone: white ground, fixed colours."""
    inline: str
    """An ``<svg>`` element that takes its colours from the page's variables, so that it can turn dark."""


@contextmanager
def canvas(*, width: float = 4.8, height: float = 3.1) -> Iterator[tuple[Figure, Axes]]:
    """Give a figure with one pair of axes in the house style, outside matplotlib's global state of figures.

    Args:
        width: inches.
        height: inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def render(figure: Figure, *, name: str, title: str, caption: str) -> Drawing:
    """Turn a figure into a PNG, a standing SVG and an inline SVG."""
    import matplotlib

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Drawing(
        name=name,
        title=title,
        caption=caption,
        png=png.getvalue(),
        svg=svg.getvalue(),
        inline=_inline(svg.getvalue().decode(), name=name, label=title),
    )


def series(index: int) -> dict[str, Any]:
    """Line style of the arm at a position in the list of arms, the same in every figure."""
    again = index // len(SERIES)  # a colour that comes again comes with another dash
    return {"color": SERIES[index % len(SERIES)], "linestyle": DASHES[(index + again) % len(DASHES)]}


def log_if_wide(axes: Axes, which: Literal["x", "y"], values: Iterable[float]) -> None:
    """Use a logarithmic scale, with plain figures, where positive values span more than a factor of ten."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) <= 10 * min(positive):
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    decades = max(positive) / min(positive)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 1e3 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def percent_ticks(axis: Axis) -> None:
    """Write the ticks of a share as percentages, with as many digits as tell them apart."""
    from matplotlib.ticker import FuncFormatter

    def text(share: float, _: int | None) -> str:
        return percent(share, digits=_digits([100 * place for place in axis.get_majorticklocs()]))

    axis.set_major_formatter(FuncFormatter(text))


def _digits(values: Sequence[float]) -> int:
    """Count the decimal places that write all values exactly, or nearly; at most 3."""
    return next((n for n in range(3) if all(abs(round(value, n) - value) < 1e-6 for value in values)), 3)


def head(axes: Axes, title: str, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Put the title above the axes and name the series in rows between the two."""
    lengths = sorted(map(len, labels))
    columns = max(n for n in (1, 2, 3) if n == 1 or (n <= len(labels) and sum(lengths[-n:]) <= LEGEND_ROW))
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        borderpad=0.2,
        borderaxespad=0.3,
        columnspacing=1.4,
    )
    axes.set_title(title, pad=10 + 15 * math.ceil(len(labels) / columns))


def _inline(svg: str, *, name: str, label: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body).replace("xlink:href=", "href=")
    body = re.sub(r'id="([^"]*)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]*)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", body)
    for colour, variable in VARIABLES.items():
        body = re.sub(rf"(?<=: ){colour}\b", f"var({variable})", body)
    width, height = (float(value) for value in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body)[0])
    opening = f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width:g} {height:g}">'
    return opening + body[body.index(">") + 1 :].strip()

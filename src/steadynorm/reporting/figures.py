"""Render charts: as PNG and SVG files, and as a specification that a browser makes interactive."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd

from steadynorm.reporting import charts
from steadynorm.reporting.report import Figure

__all__ = ["PALETTE", "Drawing", "draw", "live_script"]

INK, MUTED, GRID, SURFACE = "#1d2430", "#5b6472", "#d8dde4", "#ffffff"
PALETTE = {INK: "ink", MUTED: "muted", GRID: "line", SURFACE: "surface"} | {
    color: f"series-{place}" for place, color in enumerate(charts.COLORS)
}
"""Colors of the figures, and the variables of the page's style that replace them on a dark ground."""

STYLE: dict[str, Any] = {
    "background": SURFACE,
    "font": "DejaVu Sans, sans-serif",
    "padding": 4,
    "view": {"stroke": None},
    "title": {"anchor": "start", "frame": "group", "fontSize": 13, "fontWeight": 700, "color": INK, "offset": 8},
    "axis": {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "gridColor": GRID,
        "domainColor": MUTED,
        "tickColor": MUTED,
        "domainWidth": 0.8,
    },
    "legend": {
        "labelColor": INK,
        "labelFontSize": 11,
        "symbolStrokeWidth": 2,
        "symbolType": "stroke",
        "offset": 4,
        "rowPadding": 2,
    },
    "text": {"color": INK, "fontSize": 11},
}
SCALE = 2.0  # pixels of a PNG for one of the page's


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure as files and as page content."""

    name: str
    caption: str
    png: bytes
    svg: str
    """Stands alone: white ground, fixed colors."""
    inline: str
    """An ``<svg>`` element whose ids are its own; the page's style may change its colors."""
    specification: str
    """Vega-Lite, as JSON that may stand within a page."""


def draw(figure: Figure) -> Drawing:
    """Draw a figure; the same figure gives the same bytes."""
    import vl_convert

    specification = _styled(figure)
    svg = vl_convert.vegalite_to_svg(specification)
    return Drawing(
        name=figure.name,
        caption=figure.caption,
        png=vl_convert.svg_to_png(svg, scale=SCALE),
        svg=svg,
        inline=_inline(svg, name=figure.name, label=figure.title),
        specification=json.dumps(specification, separators=(",", ":")).replace("<", "\\u003c"),
    )


@cache
def live_script() -> str:
    """Return the script that makes a page's figures interactive; it needs no network."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


def _styled(figure: Figure) -> dict[str, Any]:
    kind = getattr(charts, figure.kind)
    marks = {name: pd.DataFrame(rows) for name, rows in figure.marks.items()}
    chart = kind(pd.DataFrame(figure.data), **figure.options, **marks).properties(title=figure.title)
    specification: dict[str, Any] = chart.configure(**STYLE).to_dict()
    return specification


def _inline(svg: str, *, name: str, label: str) -> str:
    body = re.sub(r'id="([^"]*)"', rf'id="{name}-\1"', svg[svg.index("<svg") :])
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r' xmlns(:\w+)?="[^"]*"', "", body)
    width, height = (float(one) for one in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body)[0])
    opening = f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width:g} {height:g}">'
    return opening + body[body.index(">") + 1 :]

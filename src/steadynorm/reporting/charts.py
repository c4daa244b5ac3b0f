"""Four charts of tidy tables: lines, dot ranges, bars and points, drawn by Altair.

A table has one row for each value that was measured, and columns that say of what. A chart takes the mean over the rows
that agree in what it shows, and marks their lowest and highest value; seeds need no column of their own. This file
needs pandas and Altair alone: a report's notebook holds it whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

__all__ = ["COLORS", "DASHES", "WIDTH", "bars", "dot_ranges", "lines", "points"]

COLORS = ["#0072b2", "#d55e00", "#009e73", "#a8508a", "#b07d00", "#3d9bd3"]
"""Okabe and Ito's colors, the light ones darkened until they stand out on white."""
DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [12, 3], [4, 1, 1, 1, 1, 1]]
"""Dash patterns, to distinguish series without color."""
SHAPES = ["circle", "cross", "square", "triangle-up", "diamond", "triangle-down"]
CROSS = "M-1,-0.6L-0.6,-1L0,-0.4L0.6,-1L1,-0.6L0.4,0L1,0.6L0.6,1L0,0.4L-0.6,1L-1,0.6L-0.4,0Z"
WIDTH = 400

Chart = alt.LayerChart | alt.FacetChart
"""Type of a layered or faceted Altair chart."""


def lines(
    data: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str,
    order: Sequence[str],
    band: tuple[str, str] | None = None,
    x_title: str | None = None,
    x_log: bool = False,
    x_values: Sequence[float] = (),
    x_domain: tuple[float, float] | None = None,
    percent: bool = False,
    dots: bool = False,
    rules: Sequence[float] = (),
    crosses: pd.DataFrame | None = None,
    rings: pd.DataFrame | None = None,
) -> Chart:
    """Draw the mean of ``y`` over ``x``, a line for each value of ``hue``, and a band from its lowest to its highest.

    Args:
        data: one row for each measured value.
        x: column of the horizontal axis.
        y: column of the values.
        hue: column that tells the lines apart.
        order: all values of ``hue``; the place of one decides its color and dashes.
        band: columns of the band's lower and upper edge, averaged like ``y``, where rows hold a range of their own.
        x_title: name of the horizontal axis; default: ``x``.
        x_log: whether the horizontal axis is logarithmic.
        x_values: ticks of the horizontal axis; default: round numbers.
        x_domain: ends of the horizontal axis; default: those of the values.
        percent: whether the values are shares, written as percentages. Others get a logarithmic axis where they span
            more than a factor of ten.
        dots: whether every mean gets a dot.
        rules: places on the horizontal axis at which a dotted line stands.
        crosses: rows to mark with a cross; at the foot of the chart where ``y`` is not a number.
        rings: rows to mark with a ring.
    """
    low, high = band or (y, y)
    groups = data.dropna(subset=[y]).groupby([hue, x], sort=False)
    ends = ("mean", "mean") if band else ("min", "max")
    shown = groups.agg(mean=(y, "mean"), low=(low, ends[0]), high=(high, ends[1])).reset_index()
    base = alt.Chart(shown).encode(
        x=_x_axis(x, title=x_title or x, log=x_log, values=x_values, domain=x_domain),
        color=_color(hue, order),
    )
    values = alt.Y("mean:Q", title=None, **_value_axis([*shown["low"], *shown["high"]], percent=percent))
    few = shown.groupby(hue)[x].nunique().max() < 4 if len(shown) else True
    layers: list[Any] = [
        alt.Chart(pd.DataFrame({x: list(rules)}))
        .mark_rule(strokeDash=[2, 3], color="#5b6472", size=1)
        .encode(x=f"{x}:Q"),
        base.mark_area(opacity=0.17, interpolate="linear").encode(y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(size=2).encode(y=values, strokeDash=_dash(hue, order)),
        base.mark_point(filled=True, size=34, opacity=1 if dots or few else 0).encode(
            y=values, tooltip=_tooltip(hue, x, x_title, percent)
        ),
    ]
    for rows, mark in (
        (crosses, {"shape": CROSS, "size": 90}),
        (rings, {"size": 170, "filled": False}),
    ):
        if rows is not None and len(rows):
            layers += _marks(rows, x=x, y=y, color=_color(hue, order), mark=mark)
    return alt.layer(*layers[0 if rules else 1 :]).properties(width=WIDTH, height=230)


def dot_ranges(
    data: pd.DataFrame,
    *,
    rows: str,
    x: str,
    hue: str,
    order: Sequence[str],
    ends: tuple[str, str] | None = None,
    x_title: str | None = None,
    percent: bool = False,
    signed: bool = False,
) -> Chart:
    """Draw a row for each value of ``rows`` and, for each value of ``hue`` in it, the mean of ``x`` and its range.

    Args:
        data: one row for each measured value.
        rows: column that names the chart's rows, from top to bottom as they come.
        x: column of the values.
        hue: column that tells the dots of a row apart.
        order: all values of ``hue``, as they stand in a row.
        ends: columns of the range's ends, averaged like ``x``, where rows hold a range of their own.
        x_title: name of the horizontal axis; default: ``x``.
        percent: whether the values are shares, written as percentages.
        signed: whether values are differences, written with their sign beside a line at zero.
    """
    low, high = ends or (x, x)
    how = ("mean", "mean") if ends else ("min", "max")
    groups = data.dropna(subset=[x]).groupby([rows, hue], sort=False)
    shown = groups.agg(mean=(x, "mean"), low=(low, how[0]), high=(high, how[1])).reset_index()
    names = list(dict.fromkeys(shown[rows]))
    axis: dict[str, Any] = (
        {"axis": alt.Axis(format="+~r", tickCount=6, labelExpr="datum.value === 0 ? '0' : datum.label")}
        if signed
        else _value_axis([*shown["low"], *shown["high"]], percent=percent)
    )
    base = alt.Chart(shown).encode(
        y=alt.Y(f"{rows}:N", sort=names, title=None, axis=alt.Axis(grid=False, labelLimit=220)),
        yOffset=alt.YOffset(f"{hue}:N", sort=list(order), scale=alt.Scale(domain=list(order), paddingOuter=0.4)),
        color=_color(hue, order),
    )
    layers: list[Any] = [
        base.mark_rule(size=1.6).encode(x=alt.X("low:Q"), x2="high:Q"),
        base.mark_point(filled=True, opacity=1, size=38).encode(
            x=alt.X("mean:Q", title=x_title or x, **axis), tooltip=_tooltip(hue, rows, None, percent, nominal=True)
        ),
    ]
    if signed:
        layers.insert(0, alt.Chart(pd.DataFrame({"zero": [0]})).mark_rule(color="#5b6472").encode(x="zero:Q"))
    height = len(names) * max(15, 8 * len(order) + 6)
    return alt.layer(*layers).properties(width=WIDTH, height=height)


def bars(
    data: pd.DataFrame, *, rows: str, x: str, text: str, order: Sequence[str], x_title: str | None = None
) -> Chart:
    """Draw a bar of length ``x`` for each row of the table, with its ``text`` at the end.

    Args:
        data: one row for each bar.
        rows: column that names the bars and decides their color.
        x: column of the lengths.
        text: column of what stands at their ends.
        order: all values of ``rows``.
        x_title: name of the horizontal axis; default: ``x``.
    """
    base = alt.Chart(data).encode(
        y=alt.Y(f"{rows}:N", sort=list(order), title=None, axis=alt.Axis(grid=False, labelLimit=220)),
        x=alt.X(f"{x}:Q", title=x_title or x, scale=alt.Scale(domainMin=0)),
    )
    scale = alt.Scale(domain=list(order), range=_cycle(COLORS, order))
    return alt.layer(
        base.mark_bar(size=18).encode(color=alt.Color(f"{rows}:N", scale=scale, legend=None)),
        base.mark_text(align="left", dx=5).encode(text=f"{text}:N"),
    ).properties(width=WIDTH, height=36 * len(data) + 30)


def points(
    data: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str,
    order: Sequence[str],
    x_title: str | None = None,
    x_counts: bool = False,
    y_title: str | None = None,
    text: str | None = None,
    percent: bool = False,
    least_span: float = 0.0,
    rules: Sequence[float] = (),
) -> Chart:
    """Draw a point for each row of the table.

    Args:
        data: one row for each point.
        x: column of the horizontal axis; logarithmic where it spans more than a factor of ten.
        y: column of the vertical axis, likewise.
        hue: column that decides color and shape.
        order: all values of ``hue``.
        x_title: name of the horizontal axis; default: ``x``.
        x_counts: whether the horizontal axis counts, in whole numbers; it is linear then.
        y_title: name of the vertical axis; default: ``y``.
        text: column of names that stand beside the points.
        percent: whether ``y`` holds shares, written as percentages.
        least_span: of the vertical axis, so that what is as good as equal looks so.
        rules: places on the horizontal axis at which a dotted line stands.
    """
    room = (least_span - (data[y].max() - data[y].min())) / 2
    ends = [data[y].min() - room, data[y].max() + room] if room > 0 else None
    places = (
        {"axis": alt.Axis(tickMinStep=1, format="d"), "scale": alt.Scale(zero=False)}
        if x_counts
        else _value_axis(list(data[x]), percent=False)
    )
    base = alt.Chart(data).encode(
        x=alt.X(f"{x}:Q", title=x_title or x, **places),
        y=alt.Y(f"{y}:Q", title=y_title or y, **_value_axis(list(data[y]), percent=percent, domain=ends)),
        color=_color(hue, order),
    )
    shape = alt.Shape(
        f"{hue}:N", scale=alt.Scale(domain=list(order), range=_turned(SHAPES, order)), legend=_legend(order)
    )
    named = [alt.Tooltip(f"{name}:N") for name in (hue, text) if name]
    layers: list[Any] = [
        base.mark_point(filled=True, size=38, opacity=0.75).encode(shape=shape, tooltip=[*named, f"{x}:Q", f"{y}:Q"])
    ]
    if text:
        layers.append(base.mark_text(align="left", dx=8, fontSize=11).encode(text=f"{text}:N"))
    if rules:
        layers.insert(
            0,
            alt.Chart(pd.DataFrame({x: list(rules)})).mark_rule(strokeDash=[2, 3], color="#5b6472").encode(x=f"{x}:Q"),
        )
    return alt.layer(*layers).properties(width=WIDTH, height=260)


def _marks(rows: pd.DataFrame, *, x: str, y: str, color: alt.Color, mark: dict[str, Any]) -> list[alt.Chart]:
    """Mark rows at their values, and rows without a value at the foot of the chart."""
    style = {"filled": True, "opacity": 1, "strokeWidth": 1.4} | mark
    known, unknown = rows[rows[y].notna()], rows[rows[y].isna()]
    found = []
    if len(known):
        found.append(alt.Chart(known).mark_point(**style).encode(x=f"{x}:Q", y=f"{y}:Q", color=color))
    if len(unknown):
        foot = alt.value(230)
        found.append(alt.Chart(unknown.drop(columns=y)).mark_point(**style).encode(x=f"{x}:Q", y=foot, color=color))
    return found


def _x_axis(x: str, *, title: str, log: bool, values: Sequence[float], domain: tuple[float, float] | None) -> alt.X:
    scale = alt.Scale(
        nice=False,
        **({"type": "log"} if log else {"zero": False}),
        **({"domain": list(domain)} if domain else {"padding": 12}),
    )
    if log and domain and not values:
        values = _round_numbers(domain)
    ticks: dict[str, Any] = {"values": list(values)} if values else {"tickMinStep": 1} if not log else {}
    return alt.X(f"{x}:Q", title=title, scale=scale, axis=alt.Axis(format=",~g" if log else "~r", **ticks))


def _value_axis(values: Sequence[float], *, percent: bool, domain: Sequence[float] | None = None) -> dict[str, Any]:
    """Return scale and axis of measured values, logarithmic if all are positive and span more than a factor of ten."""
    if not percent and values and min(values) > 0 and max(values) > 10 * min(values):
        ticks = alt.Axis(format="~g", values=_round_numbers(values))
        return {"axis": ticks, "scale": alt.Scale(type="log", nice=False, padding=6)}
    ends: dict[str, Any] = {"domain": list(domain)} if domain else {}
    scale = alt.Scale(zero=False, **ends)
    return {"scale": scale, **({"axis": alt.Axis(format="~%")} if percent else {})}


def _round_numbers(values: Sequence[float]) -> list[float]:
    """Return the ticks of a logarithmic axis: 1, 2 and 5 in every decade, or 1 alone for many decades."""
    first, last = (math.floor(math.log10(end)) for end in (min(values), max(values)))
    steps = (1, 2, 5) if last - first < 3 else (1,)
    return [step * 10.0**decade for decade in range(first, last + 1) for step in steps]


def _color(hue: str, order: Sequence[str]) -> alt.Color:
    scale = alt.Scale(domain=list(order), range=_cycle(COLORS, order))
    return alt.Color(f"{hue}:N", scale=scale, legend=_legend(order))


def _dash(hue: str, order: Sequence[str]) -> alt.StrokeDash:
    scale = alt.Scale(domain=list(order), range=_turned(DASHES, order))
    return alt.StrokeDash(f"{hue}:N", scale=scale, legend=_legend(order))


def _legend(order: Sequence[str]) -> alt.Legend:
    """Return the shared legend of colors, dashes and shapes, which Altair merges if they are equal."""
    return alt.Legend(title=None, orient="top", columns=2 if len(order) > 3 else 3, labelLimit=260, symbolOpacity=1)


def _cycle(values: Sequence[Any], order: Sequence[str]) -> list[Any]:
    return [values[place % len(values)] for place in range(len(order))]


def _turned(values: Sequence[Any], order: Sequence[str]) -> list[Any]:
    """Assign dashes or shapes by position, so that a repeated color gets a different one."""
    return [values[(place + place // len(COLORS)) % len(values)] for place in range(len(order))]


def _tooltip(hue: str, x: str, x_title: str | None, percent: bool, *, nominal: bool = False) -> list[alt.Tooltip]:
    form = ".1%" if percent else ".4~g"
    titled: dict[str, Any] = {"title": x_title} if x_title else {}
    return [
        alt.Tooltip(f"{hue}:N"),
        alt.Tooltip(f"{x}:{'N' if nominal else 'Q'}", **titled),
        *(
            alt.Tooltip(f"{name}:Q", title=title, format=form)
            for name, title in (("mean", "mean"), ("low", "lowest"), ("high", "highest"))
        ),
    ]

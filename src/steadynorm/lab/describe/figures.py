"""Charts by arms; an arm has the same color in all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steadynorm.lab.describe.names import arm_label, arm_labels
from steadynorm.reporting.records import Cell, Record
from steadynorm.reporting.report import Figure, Kind, Rows

__all__ = ["arm_figure", "chart", "curves"]

FEW = 8  # epochs with a tick each; Vega would add ticks between them
CROSSED = "A cross marks the last epoch of a run that diverged."
LOWERED = "Dotted: the learning rate is lowered."
OVER_SEEDS = "Line: mean of the seeds. Band: their lowest to highest value."
OVER_STEPS = "Line: mean over the epoch's steps. Band: 5th to 95th percentile of the steps."


def chart(
    kind: Kind,
    data: Rows,
    *,
    name: str,
    title: str,
    caption: str,
    marks: Mapping[str, Sequence[dict[str, Any]]] | None = None,
    **options: Any,  # noqa: ANN401 (those of the chart)
) -> list[Figure]:
    """Draw rows, or only marks; nothing without either.

    Args:
        kind: kind of the chart, a function of :mod:`steadynorm.reporting.charts`.
        data: a row for each value.
        name: file name without its ending.
        title: title of the figure.
        caption: what the reader has to know.
        marks: further rows of the chart.
        options: further options of the chart.
    """
    known = {mark: rows for mark, rows in (marks or {}).items() if rows}
    if known and not len(data):
        columns = [options["x"], options["y"], *options.get("band", ())]
        data = [{options["hue"]: "", **dict.fromkeys(columns, math.nan)}]
    figure = Figure(name=name, title=title, caption=caption, kind=kind, data=data, options=options, marks=known)
    return [figure] if len(data) else []


def arm_figure(
    record: Record,
    kind: Kind,
    data: Rows,
    *,
    marks: Mapping[str, Sequence[dict[str, Any]]] | None = None,
    **options: Any,  # noqa: ANN401 (those of :func:`chart`)
) -> list[Figure]:
    """Draw rows whose column ``arm``, the registered name, decides the color; see :func:`chart`."""
    marks = {mark: _named(rows) for mark, rows in (marks or {}).items()}
    shown = _named(data) if isinstance(data, Sequence) else data.assign(arm=data["arm"].map(arm_label))
    return chart(kind, shown, marks=marks, **{"hue": "arm", "order": arm_labels(record)} | options)


def _named(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "arm": arm_label(row["arm"])} for row in rows]


def curves(
    record: Record,
    runs: Mapping[str, Sequence[Cell]],
    quantity: str,
    *,
    caption: str,
    steps: tuple[str, str] | None = None,
    **options: Any,  # noqa: ANN401 (those of :func:`chart`)
) -> list[Figure]:
    """Draw one quantity over the epochs, a line for each arm, and a cross on the last epoch of a run that diverged.

    Args:
        record: its arms decide the colors, its milestones are marked.
        runs: arm, or label of a line -> its runs, one for each seed.
        quantity: quantity to draw; an accuracy is a share in [0, 1].
        caption: what the reader has to know; the meaning of line and band is added.
        steps: quantities that are the ends of the spread over an epoch's steps, shown where each arm has one seed.
        options: title and name, by default the quantity's, and further options of the chart.
    """
    single = all(len(found) < 2 for found in runs.values())
    ends = dict(zip(("low", "high"), steps, strict=True)) if steps and single else {}
    rows = [
        {"arm": label, "epoch": epoch, "value": value} | {end: run.series(of)[epoch] for end, of in ends.items()}
        for label, found in runs.items()
        for run in found
        for epoch, value in run.series(quantity).items()
        if math.isfinite(value)
    ]
    crosses = [
        {"arm": label, **_last(run, quantity)}
        for label, found in runs.items()
        for run in found
        if run.status == "diverged"
    ]
    epochs = int(record.config["epochs"])
    rules = [int(epoch) + 0.5 for epoch in record.config["milestones"] if epoch < epochs]
    band = OVER_STEPS if ends else "" if single else OVER_SEEDS
    notes = (caption, band, LOWERED if rules else "", CROSSED if crosses else "")
    axes: dict[str, Any] = {"x": "epoch", "x_domain": (0.5, epochs + 0.5), "rules": rules, "y": "value"}
    axes |= {"percent": quantity.endswith("accuracy"), **({"band": tuple(ends)} if ends else {})}
    axes |= {"name": quantity, "x_values": list(range(1, epochs + 1)) if epochs <= FEW else [], **options}
    caption = " ".join(filter(None, notes))
    return arm_figure(record, "lines", rows, caption=caption, marks={"crosses": crosses}, **axes)


def _last(run: Cell, quantity: str) -> dict[str, float]:
    """Return the last epoch with a finite value, or a place without a value."""
    known = [(epoch, value) for epoch, value in run.series(quantity).items() if math.isfinite(value)]
    epoch, value = known[-1] if known else (0.5, math.nan)
    return {"epoch": epoch, "value": value}

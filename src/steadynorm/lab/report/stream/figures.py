"""The figure of ways to adapt: what each gains or loses beside the stored statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from steadynorm.lab.analysis import Spread
from steadynorm.lab.report.figure import Drawing
from steadynorm.lab.report.gains import draw_gains
from steadynorm.lab.report.stream.summary import Way
from steadynorm.lab.report.wording import method_label

__all__ = ["draw_ways"]


def draw_ways(ways: Sequence[Way]) -> Iterator[Drawing]:
    """Draw the gain of each way in each order; nothing before one is measured."""
    gains: dict[str, dict[str, Spread]] = {}
    for way in ways:
        if way.gain is not None and way.method != "stored":
            gains.setdefault(method_label(way.method), {})[way.order.replace("_", "-")] = way.gain
    if gains:
        orders = list(dict.fromkeys(way.order.replace("_", "-") for way in ways))
        yield draw_gains(
            gains,
            name="ways",
            title="Gain over the stored statistics",
            caption="Dot: mean of the seeds. Line: lowest to highest.",
            positions={order: place for place, order in enumerate(orders)},
        )

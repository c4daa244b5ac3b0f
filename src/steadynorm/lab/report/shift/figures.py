"""The figures of shift: error over severity, each corruption, and what each way gains or loses by kind of stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from steadynorm.lab.analysis import Spread, spread
from steadynorm.lab.experiments.shift import CLEAN
from steadynorm.lab.report.figure import Drawing, canvas, head, percent_ticks, render, series
from steadynorm.lab.report.gains import draw_gains
from steadynorm.lab.report.shift.summary import STORED, Decayed, Shown, kinds_of
from steadynorm.lab.report.shift.wording import kind_label, shift_label
from steadynorm.lab.report.wording import method_label

__all__ = ["draw_corruptions", "draw_decays", "draw_kinds"]

TOLD = (STORED, "batch", "gate")
"""Ways in the figure of single corruptions: the two extremes and what chooses between them."""


def draw_kinds(found: Sequence[Shown]) -> Iterator[Drawing]:
    """Draw the gain of each way over the stored statistics, by kind of stream; nothing before one is measured."""
    gains: dict[str, dict[str, Spread]] = {}
    for method in dict.fromkeys(one.method for one in found if one.method != STORED):
        for kind in kinds_of(found):
            here = [one.gain.mean for one in found if (one.method, one.kind) == (method, kind) and one.gain]
            if (value := spread(here)) is not None:
                gains.setdefault(method_label(method), {})[kind_label(kind)] = value
    if gains:
        yield draw_gains(
            gains,
            name="gains",
            title="Gain over the stored statistics",
            caption="Dot: mean of a kind's streams, clean and corrupted. Line: its worst to its best stream.",
            positions={kind_label(kind): place for place, kind in enumerate(kinds_of(found))},
        )


def draw_corruptions(found: Sequence[Shown]) -> Iterator[Drawing]:
    """Draw the error for each corruption at its hardest on well-mixed streams."""
    hardest = max((one.severity for one in found), default=0)
    here = [one for one in found if one.kind == "iid" and one.severity in (0, hardest) and one.method in TOLD]
    shifts = list(dict.fromkeys(one.shift for one in here))
    if not shifts:
        return
    title = f"Error on well-mixed streams, severity {hardest}"
    methods = [method for method in TOLD if any(one.method == method for one in here)]
    with canvas(height=1.3 + 0.24 * len(shifts)) as (figure, axes):
        for one in here:
            place = shifts.index(one.shift) + 0.22 * (methods.index(one.method) - 1)
            axes.plot(one.error.mean, place, "o", markersize=5, color=series(methods.index(one.method))["color"])
        axes.set_yticks(range(len(shifts)), [shift_label(shift) for shift in shifts])
        axes.set_ylim(len(shifts) - 0.4, -0.6)
        percent_ticks(axes.xaxis)
        axes.set_xlabel("error")
        handles = [
            axes.plot([], [], "o", markersize=5, color=series(place)["color"])[0] for place in range(len(methods))
        ]
        head(axes, title, handles, [method_label(method) for method in methods])
        yield render(figure, name="corruptions", title=title, caption="Mean of the seeds; batches of mixed classes.")


def draw_decays(found: Sequence[Decayed]) -> Iterator[Drawing]:
    """Draw the error of the stored statistics of each decay over the severity; nothing before one is measured."""
    from matplotlib.ticker import MaxNLocator

    shifted = [one for one in found if one.severity > 0 or one.shift == CLEAN]
    if not shifted:
        return
    title = "Error of stored statistics by severity"
    names = list(dict.fromkeys(one.decay for one in shifted))
    with canvas() as (figure, axes):
        for place, decay in enumerate(names):
            severities = sorted({one.severity for one in shifted if one.decay == decay})
            means = [_mean([one for one in shifted if (one.decay, one.severity) == (decay, at)]) for at in severities]
            axes.plot(severities, means, marker="o", markersize=4.5, **series(place))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        percent_ticks(axes.yaxis)
        axes.margins(0.08)
        axes.set_xlabel("severity (0: clean)")
        handles = [axes.plot([], [], **series(place))[0] for place in range(len(names))]
        head(axes, title, handles, [f"decay {name}" if name[0].isdigit() else "self-tuned" for name in names])
        yield render(figure, name="decays", title=title, caption="Mean over corruptions and seeds.")


def _mean(found: Sequence[Decayed]) -> float:
    return sum(one.error.mean for one in found) / len(found)

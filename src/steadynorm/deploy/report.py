"""What the report of an export says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from steadynorm.deploy.formats import FORMATS
from steadynorm.deploy.pipeline import EAGER, TOLERANCE
from steadynorm.deploy.processes import serving_snippet
from steadynorm.deploy.results import FILE, Artifact, Outcome, read_outcome
from steadynorm.lab.analysis import Spread, spread
from steadynorm.lab.chance import chance_of
from steadynorm.lab.records import Record, read_config
from steadynorm.lab.report.build import write_report
from steadynorm.lab.report.document import Code, Expectation, Expectations, Figures, Report, Section, Text, expected
from steadynorm.lab.report.figure import Drawing, canvas, log_if_wide, percent_ticks, render, series
from steadynorm.lab.report.page import Cell, Table
from steadynorm.lab.report.quantities import NONE, SPACE, number, percent, points
from steadynorm.lab.report.question import is_guessing, unless_guessing
from steadynorm.lab.report.wording import data_label

__all__ = ["best_of", "build_export_report", "make_report", "missed_target"]

FASTER = 2.0
"""How many times faster than eager torch the best file is expected to be."""


def build_export_report(directory: Path) -> Path:
    """Write the report of an export from its record alone; returns the page's path."""
    record, outcome = read_config(directory), read_outcome(directory)
    files = [(one.file, one.name) for one in outcome.artifacts if one.file]
    return write_report(
        directory, record, make_report(record, outcome), files=[(FILE, "every number of every file"), *files]
    )


def best_of(outcome: Outcome) -> Artifact | None:
    """Give the kept file whose requests are fastest at the median, None where nothing is timed."""
    timed = [one for one in outcome.artifacts if one.file and one.latency]
    return min(timed, key=_p50, default=None)


def missed_target(directory: Path) -> bool:
    """Say whether an export was to be faster than its best file is."""
    target, best = read_config(directory).config["target_p50_ms"], best_of(read_outcome(directory))
    return target is not None and (best is None or _p50(best) > target)


def make_report(record: Record, outcome: Outcome) -> Report:
    """Say what an export found."""
    eager = next(one for one in outcome.artifacts if one.name == EAGER.name)
    served = [one for one in outcome.artifacts if one.latency]
    refused = [one for one in outcome.artifacts if one.refused]
    table = _short(served, eager)
    return Report(
        headline=_headline(record, outcome, eager),
        lead=f"{outcome.model}, {outcome.parameters:,} parameters, {outcome.norms} batch norms, on images of "
        f"{_size(record)}; each file is read again in a fresh process that cannot import steadynorm.",
        table=table,
        sections=(
            Section(key="result", title="Result", blocks=(table, Figures([_draw(served)]))),
            expected(Expectations(_expectations(record, outcome, eager))),
            Section(key="latency", title="Latency of one image", short="Latency", blocks=(_latencies(served, eager),)),
            Section(key="throughput", title="Throughput", blocks=(_throughputs(record, served),)),
            Section(
                key="agreement", title="Agreement with the model", short="Agreement", blocks=(_agreements(served),)
            ),
            Section(key="refused", title="What was not made", short="Not made", blocks=_refusals(refused)),
            Section(key="steps", title="What was done", short="Steps", blocks=_steps(outcome)),
            Section(key="serving", title="How to serve it", short="Serving", blocks=_snippets(outcome)),
        ),
        method=_method(record),
        finished=True,
        findings={"outcome": asdict(outcome)},
    )


def _headline(record: Record, outcome: Outcome, eager: Artifact) -> str:
    best = best_of(outcome)
    if best is None:
        return "Nothing was exported"
    text = f"{best.name} answers in {_ms(_p50(best))} at {_size(record)}, {_times(best, eager)} as fast as eager torch"
    if is_guessing(_accuracy(eager), chance_of(record)):
        return f"{text}, but the model is no better than guessing: {percent(eager.accuracy)}"
    if best.accuracy is not None and eager.accuracy is not None:
        gap = eager.accuracy - best.accuracy
        if round(100 * gap, 1) == 0:
            return f"{text} and as accurate"
        return f"{text}, {points(gap)} {'less' if gap > 0 else 'more'} accurate"
    return f"{text}, same class on {percent(best.agreement)}"


def _expectations(record: Record, outcome: Outcome, eager: Artifact) -> tuple[Expectation, ...]:
    best, target = best_of(outcome), record.config["target_p50_ms"]
    found = []
    if best is not None and target is not None:
        found.append(
            Expectation(
                claim=f"Half of the requests to the best file end within {target:g}{SPACE}ms.",
                verdict="met" if _p50(best) <= target else "not met",
                measured=f"{best.name}: {_ms(_p50(best))}.",
            )
        )
    if best is not None:
        found.append(
            Expectation(
                claim=f"The best file is at least {FASTER:g} times as fast as eager torch with its batch norms.",
                verdict="met" if _p50(eager) / _p50(best) >= FASTER else "not met",
                measured=f"{best.name}: {_times(best, eager)}.",
            )
        )
    drop = record.config["max_drop"]
    for one in outcome.artifacts:
        if one.quantize != "static" or "static" not in FORMATS[one.format].writers:
            continue
        if eager.accuracy is None:
            measured = f"{percent(one.agreement)} of the images keep the model's class."
            claim = f"{one.name} gives at most {drop:g}{SPACE}% of the images another class than the model."
        else:
            measured = f"{percent(one.accuracy)} against {percent(eager.accuracy)}."
            claim = f"{one.name} costs at most {points(drop / 100)} of accuracy."
        measured = f"Not made: {one.refused}" if one.refused else measured
        item = Expectation(claim=claim, verdict="not met" if one.refused else "met", measured=measured)
        found.append(unless_guessing(item, chance_of(record), {"the model": _accuracy(eager)}))
    return tuple(found)


def _accuracy(one: Artifact) -> Spread | None:
    return None if one.accuracy is None else spread([one.accuracy])


def _short(served: Sequence[Artifact], eager: Artifact) -> Table:
    """Show accuracy, or agreement with the model where there is none."""
    is_scored = eager.accuracy is not None
    rows = [
        [
            Cell(text=one.name, tone=f"series-{index % 6}"),
            Cell(text=_ms(_p50(one))),
            Cell(text=_times(one, eager)),
            *([Cell(text=percent(one.accuracy))] if is_scored else _agreement(one)),
            Cell(text=NONE if one.mib is None else f"{number(one.mib)}{SPACE}MiB"),
        ]
        for index, one in enumerate(served)
    ]
    shown = ("Accuracy",) if is_scored else ("Largest error", "Same class")
    return Table(columns=("Served by", "p50", "Speed", *shown, "Size"), rows=rows)


def _agreement(one: Artifact) -> list[Cell]:
    return [Cell(text=number(one.largest_error, digits=2)), Cell(text=percent(one.agreement))]


def _latencies(served: Sequence[Artifact], eager: Artifact) -> Table:
    rows = []
    for one in served:
        assert one.latency is not None
        latency = one.latency
        times = [Cell(text=_ms(value)) for value in (latency.p50, latency.p90, latency.p99)]
        rest = [
            Cell(text=_times(one, eager)),
            Cell(text=NONE if one.load_ms is None else f"{number(one.load_ms / 1e3)}{SPACE}s"),
            Cell(text=NONE if one.peak_mib is None else f"{one.peak_mib:,.0f}{SPACE}MiB"),
        ]
        rows.append([Cell(text=one.name, note=f"{latency.requests:,} requests"), *times, *rest])
    return Table(columns=("Served by", "p50", "p90", "p99", "Speed", "Start", "Peak memory"), rows=rows)


def _throughputs(record: Record, served: Sequence[Artifact]) -> Table:
    sizes = [str(size) for size in record.config["batch_size"]]
    rows = [
        [Cell(text=one.name), *(Cell(text=f"{number(one.images_per_second.get(size))}{SPACE}/s") for size in sizes)]
        for one in served
    ]
    return Table(columns=("Images per second", *(f"Batch {size}" for size in sizes)), rows=rows)


def _agreements(served: Sequence[Artifact]) -> Table:
    rows = [
        [
            Cell(text=one.name),
            Cell(text=number(one.largest_error, digits=2)),
            Cell(text=number(one.relative_error, digits=2)),
            Cell(text=percent(one.agreement)),
            Cell(text=percent(one.accuracy)),
        ]
        for one in served
    ]
    return Table(columns=("Served by", "Largest error", "Relative", "Same class", "Accuracy"), rows=rows)


def _refusals(refused: Sequence[Artifact]) -> tuple[Table, ...]:
    rows = [[Cell(text=one.name), Cell(text=one.refused)] for one in refused]
    return (Table(columns=("File", "Why there is none"), rows=rows),) if rows else ()


def _steps(outcome: Outcome) -> tuple[Text | Table, ...]:
    rows = [[Cell(text=one.file), Cell(text=one.note)] for one in outcome.artifacts if one.file]
    return (*(Text(step) for step in outcome.steps), Table(columns=("File", "What it holds"), rows=rows))


def _snippets(outcome: Outcome) -> tuple[Code, ...]:
    kept = dict.fromkeys(one.format for one in outcome.artifacts if one.file)
    return tuple(Code(FORMATS[name].title, serving_snippet(FORMATS[name].serving)) for name in kept)


def _draw(served: Sequence[Artifact]) -> Drawing:
    """Draw accuracy, or agreement where there is none, over the median latency."""
    by_accuracy = all(one.accuracy is not None for one in served)
    what = "accuracy" if by_accuracy else "same class as the model"
    title = f"{what.capitalize()} over the latency of one image"
    with canvas(width=6.4, height=3.6) as (figure, axes):
        markers = "osD^vP*X<>hd"
        for index, one in enumerate(served):
            value = (one.accuracy if by_accuracy else one.agreement) or 0.0
            axes.plot(
                [_p50(one)],
                [value],
                linestyle="none",
                marker=markers[index % len(markers)],
                markersize=7,
                color=series(index)["color"],
                label=one.name,
            )
        log_if_wide(axes, "x", [_p50(one) for one in served])
        axes.set_xlabel("milliseconds, median")
        shares = [(one.accuracy if by_accuracy else one.agreement) or 0.0 for one in served]
        axes.set_ylim(min(shares) - 0.01, max(shares) + 0.01)  # a hundredth of a point is no difference
        percent_ticks(axes.yaxis)
        axes.set_title(title, pad=10)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        caption = "Up is better, and left. Requests of one image, all servers in turn."
        return render(figure, name="latency", title=title, caption=caption)


def _method(record: Record) -> tuple[str, ...]:
    config, threads = record.config, record.resolved["threads"]
    return (
        f"Compared on {record.resolved['images']:,} validation images of {data_label(record)}, normalized as in "
        f"training and scaled to {_size(record)}, with the outputs of the eager model before folding. A float file may "
        f"be off by {TOLERANCE:g} of the largest output; a quantised one may cost {points(config['max_drop'] / 100)}.",
        f"Static quantisation saw the ranges of activations in {config['calibration_images']:,} training images.",
        f"Latency: every file has a process of its own with {threads} thread{'' if threads == 1 else 's'}, all asked "
        "in turn in ten rounds, ten requests before each turn not counted. Peak memory is that of a whole "
        "process that has answered single images. Throughput: the median of nine requests of each batch size.",
        "Eager torch is the model with its batch norms, run under inference mode; folded, without them.",
    )


def _p50(one: Artifact) -> float:
    assert one.latency is not None
    return one.latency.p50


def _times(one: Artifact, eager: Artifact) -> str:
    return f"{_p50(eager) / _p50(one):.1f} times"


def _ms(value: float) -> str:
    return f"{number(value)}{SPACE}ms"


def _size(record: Record) -> str:
    return "×".join(str(side) for side in record.config["input_size"])

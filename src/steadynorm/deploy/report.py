"""Build the report of an export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from steadynorm.deploy.comparison import TOLERANCE
from steadynorm.deploy.formats import FORMATS
from steadynorm.deploy.pipeline import EAGER
from steadynorm.deploy.processes import serving_snippet
from steadynorm.deploy.results import FILE, Artifact, Outcome, as_content, read_outcome
from steadynorm.lab.describe.names import data_label
from steadynorm.lab.report import write_record_report
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.claims import is_guessing, judge, unless_guessing
from steadynorm.reporting.numbers import NONE, SPACE, number, percent, points
from steadynorm.reporting.records import Record, read_config
from steadynorm.reporting.report import Claim, Claims, Code, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import Spread, spread
from steadynorm.reporting.words import counted

__all__ = ["best_of", "build_export_report", "describe", "missed_target"]

FASTER = 2.0
"""Expected speedup of the best file over eager torch."""


def build_export_report(directory: Path) -> Path:
    """Write the report of an export from its record alone; returns the page's path."""
    record, outcome = read_config(directory), read_outcome(directory)
    files = [(one.file, one.name) for one in outcome.artifacts if one.file]
    return write_record_report(
        directory, record, describe(record, outcome), files=[(FILE, "every number of every file"), *files]
    )


def best_of(outcome: Outcome) -> Artifact | None:
    """Return the kept file with the lowest median latency; None if nothing was timed."""
    timed = [one for one in outcome.artifacts if one.file and one.latency]
    return min(timed, key=_p50, default=None)


def missed_target(directory: Path) -> bool:
    """Return whether the best file missed the latency target."""
    target, best = read_config(directory).config["target_p50_ms"], best_of(read_outcome(directory))
    return target is not None and (best is None or _p50(best) > target)


def describe(record: Record, outcome: Outcome) -> Report:
    """Build the content of the report."""
    eager = next(one for one in outcome.artifacts if one.name == EAGER.name)
    served = [one for one in outcome.artifacts if one.latency]
    refused = [one for one in outcome.artifacts if one.refused]
    table = _short(served, eager)
    kept = dict.fromkeys(one.format for one in outcome.artifacts if one.file)
    return Report(
        headline=_headline(record, outcome, eager),
        lead=f"{outcome.model}, {outcome.parameters:,} parameters, {outcome.norms} batch norms, on images of "
        f"{_size(record)}; each file, read again in a fresh process without steadynorm, compared with eager torch.",
        table=table,
        sections=(
            Section(title="Result", blocks=(Figures([_figure(served)]), table)),
            Section(
                title="What was expected, and what was measured",
                short="Expectations",
                blocks=(Claims(list(_claims(record, outcome, eager))),),
            ),
            Section(title="Latency of one image", short="Latency", blocks=(_latencies(served, eager),)),
            Section(title="Throughput", blocks=(_throughputs(record, served),)),
            Section(title="Agreement with the model", short="Agreement", blocks=(Table.of(served, AGREEMENT),)),
            Section(
                title="What was not made", short="Not made", blocks=(Table.of(refused, REFUSED),) if refused else ()
            ),
            Section(
                title="What was done",
                short="Steps",
                blocks=(
                    *map(Text, outcome.steps),
                    Table.of([one for one in outcome.artifacts if one.file], FILES),
                ),
            ),
            Section(
                title="How to serve it",
                short="Serving",
                blocks=[Code(FORMATS[name].title, serving_snippet(FORMATS[name].serving)) for name in kept],
            ),
        ),
        method=_method(record),
        finished=True,
        findings={"outcome": as_content(outcome)},
    )


def _headline(record: Record, outcome: Outcome, eager: Artifact) -> str:
    best = best_of(outcome)
    if best is None:
        return "Nothing was exported"
    text = f"{best.name}: {_ms(_p50(best))}, {_times(best, eager)} as fast"
    if is_guessing(_accuracy(eager), chance_of(record)):
        return f"{text}; but the model is at chance: {percent(eager.accuracy)}"
    if best.accuracy is None or eager.accuracy is None:
        return f"{text}, same class on {percent(best.agreement)}"
    gap = eager.accuracy - best.accuracy
    if round(100 * gap, 1) == 0:
        return f"{text}, as accurate"
    return f"{text}, {points(gap)} {'less' if gap > 0 else 'more'} accurate"


def _claims(record: Record, outcome: Outcome, eager: Artifact) -> Iterator[Claim]:
    best, target, drop = best_of(outcome), record.config["target_p50_ms"], record.config["max_drop"]
    if best is not None and target is not None:
        claim = f"Half of the requests to the best file end within {target:g}{SPACE}ms."
        yield judge(claim, _p50(best) <= target, f"{best.name}: {_ms(_p50(best))}.")
    if best is not None:
        claim = f"The best file is at least {FASTER:g} times as fast as eager torch with its batch norms."
        yield judge(claim, _p50(eager) / _p50(best) >= FASTER, f"{best.name}: {_times(best, eager)}.")
    for one in outcome.artifacts:
        if one.quantize != "static" or "static" in FORMATS[one.format].lacking:
            continue
        if eager.accuracy is None:
            measured = f"{percent(one.agreement)} of the images keep the model's class."
            claim = f"{one.name} gives at most {drop:g}{SPACE}% of the images another class than the model."
        else:
            measured = f"{percent(one.accuracy)} against {percent(eager.accuracy)}."
            claim = f"{one.name} costs at most {points(drop / 100)} of accuracy."
        item = judge(claim, not one.refused, f"Not made: {one.refused}" if one.refused else measured)
        yield unless_guessing(item, chance_of(record), {"the model": _accuracy(eager)})


def _accuracy(one: Artifact) -> Spread | None:
    return None if one.accuracy is None else spread([one.accuracy])


def _short(served: Sequence[Artifact], eager: Artifact) -> Table:
    """Build the short table, with accuracy or else the agreement with the model."""
    scored: dict[str, Callable[[Artifact], str]] = {"Accuracy": lambda one: percent(one.accuracy)}
    unscored: dict[str, Callable[[Artifact], str]] = {
        "Largest error": lambda one: number(one.largest_error, digits=2),
        "Same class": lambda one: percent(one.agreement),
    }
    return Table.of(
        served,
        {
            "Served by": lambda one: Entry(text=one.name, tone=f"series-{served.index(one) % 6}"),
            "p50": lambda one: _ms(_p50(one)),
            "Speed": lambda one: _times(one, eager),
            **(unscored if eager.accuracy is None else scored),
            "Size": lambda one: NONE if one.mib is None else f"{number(one.mib)}{SPACE}MiB",
        },
    )


def _latencies(served: Sequence[Artifact], eager: Artifact) -> Table:
    timed = [(one, one.latency) for one in served if one.latency]
    return Table.of(
        timed,
        {
            "Served by": lambda pair: Entry(text=pair[0].name, note=f"{pair[1].requests:,} requests"),
            "p50": lambda pair: _ms(pair[1].p50),
            "p90": lambda pair: _ms(pair[1].p90),
            "p99": lambda pair: _ms(pair[1].p99),
            "Speed": lambda pair: _times(pair[0], eager),
            "Start": lambda pair: _or_none(pair[0].load_ms, lambda ms: f"{number(ms / 1e3)}{SPACE}s"),
            "Peak memory": lambda pair: _or_none(pair[0].peak_mib, lambda mib: f"{mib:,.0f}{SPACE}MiB"),
        },
    )


def _throughputs(record: Record, served: Sequence[Artifact]) -> Table:
    def of(size: str) -> Callable[[Artifact], str]:
        return lambda one: f"{number(one.images_per_second.get(size))}{SPACE}/s"

    sizes = {f"Batch {size}": of(str(size)) for size in record.config["batch_size"]}
    return Table.of(served, {"Images per second": lambda one: one.name, **sizes})


AGREEMENT: dict[str, Callable[[Artifact], str]] = {
    "Served by": lambda one: one.name,
    "Largest error": lambda one: number(one.largest_error, digits=2),
    "Relative": lambda one: number(one.relative_error, digits=2),
    "Same class": lambda one: percent(one.agreement),
    "Accuracy": lambda one: percent(one.accuracy),
}
REFUSED: dict[str, Callable[[Artifact], str]] = {
    "File": lambda one: one.name,
    "Why there is none": lambda one: one.refused,
}
FILES: dict[str, Callable[[Artifact], str]] = {"File": lambda one: one.file, "What it holds": lambda one: one.note}


def _figure(served: Sequence[Artifact]) -> Figure:
    """Plot accuracy, or else agreement, over the median latency."""
    by_accuracy = all(one.accuracy is not None for one in served)
    return Figure(
        name="latency",
        title=f"{'Accuracy' if by_accuracy else 'Same class as the model'} over the latency of one image",
        caption="Up is better, and left. Requests of one image, all servers in turn.",
        kind="points",
        data=[
            {
                "served by": one.name,
                "milliseconds": _p50(one),
                "share": (one.accuracy if by_accuracy else one.agreement) or 0.0,
            }
            for one in served
        ],
        options={
            "x": "milliseconds",
            "y": "share",
            "hue": "served by",
            "order": [one.name for one in served],
            "x_title": "milliseconds, median",
            "y_title": "accuracy" if by_accuracy else "same class",
            "percent": True,
            "least_span": 0.02,
        },
    )


def _method(record: Record) -> tuple[str, ...]:
    config, threads = record.config, record.resolved["threads"]
    return (
        f"Compared on {record.resolved['images']:,} validation images of {data_label(record)}, normalized as in "
        f"training and scaled to {_size(record)}, with the outputs of the eager model before folding. A float file may "
        f"be off by {TOLERANCE:g} of the largest output; a quantised one may cost {points(config['max_drop'] / 100)}.",
        f"Static quantisation saw the ranges of activations in {config['calibration_images']:,} training images.",
        f"Latency: every file has a process of its own with {counted(threads, 'thread')}, all asked "
        "in turn in ten rounds, ten requests before each turn not counted. Peak memory is that of a whole "
        "process that has answered single images. Throughput: the median of nine requests of each batch size.",
        "Eager torch is the model with its batch norms, run under inference mode; folded, without them.",
    )


def _p50(one: Artifact) -> float:
    assert one.latency is not None
    return one.latency.p50


def _times(one: Artifact, eager: Artifact) -> str:
    return f"{_p50(eager) / _p50(one):.1f} times"


def _or_none(value: float | None, text: Callable[[float], str]) -> str:
    return NONE if value is None else text(value)


def _ms(value: float) -> str:
    return f"{number(value)}{SPACE}ms"


def _size(record: Record) -> str:
    return "×".join(str(side) for side in record.config["input_size"])

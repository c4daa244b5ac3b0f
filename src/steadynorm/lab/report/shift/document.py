"""What the report of shift says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from steadynorm.lab.analysis import Spread, spread
from steadynorm.lab.chance import chance_of
from steadynorm.lab.experiments.shift import CLEAN, SWAPPED
from steadynorm.lab.records import Record
from steadynorm.lab.report.document import (
    Block,
    Expectations,
    Figures,
    Report,
    Section,
    Text,
    all_measured,
    expected,
    run_as_json,
)
from steadynorm.lab.report.method import data_method, training_method
from steadynorm.lab.report.page import Cell, Table
from steadynorm.lab.report.quantities import NONE, percent, points
from steadynorm.lab.report.question import is_guessing
from steadynorm.lab.report.shift.expectations import LIMIT, expectations
from steadynorm.lab.report.shift.figures import draw_corruptions, draw_decays, draw_kinds
from steadynorm.lab.report.shift.summary import (
    STORED,
    Decayed,
    Shown,
    by_stream,
    decays,
    kept_share,
    kinds_of,
    mean_error,
    published_share,
    shown,
    worst,
)
from steadynorm.lab.report.shift.wording import kind_label, shift_label
from steadynorm.lab.report.wording import capital, data_label, epochs_label, method_label, seeds_label

__all__ = ["make_report"]


def make_report(record: Record) -> Report:
    """Say what shift costs and what adapting wins."""
    found, kept, trained = shown(record), decays(record), _trained(record)
    kinds = list(draw_kinds(found))
    return Report(
        headline=_at_chance(record, trained) or _headline(record, found),
        lead=_lead(record),
        table=_short_table(found),
        sections=(
            Section(key="result", title="Ways to choose the statistics", short="Result", blocks=_result(found)),
            expected(Expectations(expectations(found, kept, chance_of(record), trained))),
            Section(
                key="gains",
                title="Gains and losses",
                blocks=(Figures([*kinds, *draw_corruptions(found)]),) if kinds else (),
            ),
            Section(
                key="decays",
                title="Which decay survives",
                blocks=(_decay_table(kept), Text(_survivor(kept)), Figures(list(draw_decays(kept)))) if kept else (),
            ),
            Section(key="streams", title="Every stream", blocks=_stream_tables(found)),
        ),
        method=_method(record),
        finished=all_measured(record),
        findings={
            "limit": LIMIT,
            "kept_share": {method: kept_share(found, method) for method in record.config["methods"]},
            "worst": {method: asdict(one) for method in record.config["methods"] if (one := worst(found, method))},
            "decays": [asdict(one) for one in kept],
            "streams": by_stream(found),
            "runs": [run_as_json(run) for run in record.runs],
        },
    )


def _result(found: Sequence[Shown]) -> tuple[Block, ...]:
    if not found:
        return ()
    return (
        _table(found),
        Text(
            "Error, averaged over streams: clean and corrupted ones at every severity where they are well mixed, clean "
            "ones and the hardest severity elsewhere. The last columns are held against the stored statistics on the "
            "same images: the share of batch statistics' gain on corrupted, well-mixed streams that is kept, and the "
            "stream on which most is lost."
        ),
    )


def _table(found: Sequence[Shown]) -> Table:
    kinds = kinds_of(found)
    columns = ("Statistics", *(capital(kind_label(kind)) for kind in kinds), "Of batch's gain kept", "Worst stream")
    rows = []
    for method in dict.fromkeys(one.method for one in found):
        errors = [mean_error(one for one in found if (one.kind, one.method) == (kind, method)) for kind in kinds]
        share, least = kept_share(found, method), worst(found, method)
        rows.append(
            [
                Cell(text=capital(method_label(method))),
                *(Cell(text=percent(error)) for error in errors),
                Cell(text=NONE if share is None or method == STORED else percent(share, digits=0)),
                _worst_cell(least, method),
            ]
        )
    return Table(columns=columns, rows=rows)


def _short_table(found: Sequence[Shown]) -> Table:
    """Lay out what fits into a terminal: error where streams are well mixed, and what is kept and lost at most."""
    rows = []
    for method in dict.fromkeys(one.method for one in found):
        share, least = kept_share(found, method), worst(found, method)
        rows.append(
            [
                Cell(text=method),
                Cell(text=percent(mean_error(one for one in found if (one.kind, one.method) == ("iid", method)))),
                Cell(text=NONE if share is None else percent(share, digits=0)),
                Cell(text=NONE if least is None or least.gain is None else f"{100 * least.gain.mean:+.1f}"),
            ]
        )
    return Table(columns=("statistics", "error, well mixed", "kept of batch's gain", "at worst, points"), rows=rows)


def _worst_cell(least: Shown | None, method: str) -> Cell:
    if least is None or least.gain is None or method == STORED:
        return Cell(text=NONE)
    text = f"{100 * least.gain.mean:+.1f}\N{NO-BREAK SPACE}points"
    note = f"{kind_label(least.kind)}, {_shift(least)}"
    return Cell(text=text, note=note, tone="bad" if least.gain.mean < -LIMIT else "")


def _shift(one: Shown | Decayed) -> str:
    return f"{shift_label(one.shift)} {one.severity}" if one.severity else shift_label(one.shift)


def _decay_table(kept: Sequence[Decayed]) -> Table:
    names = list(dict.fromkeys(one.decay for one in kept))
    columns = ("Shift", *(f"Decay {name}" if name[0].isdigit() else "Self-tuned" for name in names))
    rows = []
    shifts = [(shift, 0) for shift in (CLEAN, SWAPPED)]
    for shift, _ in shifts:
        mine = {one.decay: one.error.mean for one in kept if one.shift == shift}
        rows.append([Cell(text=capital(shift_label(shift))), *(Cell(text=percent(mine.get(name))) for name in names)])
    for severity in sorted({one.severity for one in kept if one.severity}):
        means = [_mean_of([one for one in kept if (one.decay, one.severity) == (name, severity)]) for name in names]
        rows.append([Cell(text=f"Corruptions, severity {severity}"), *(Cell(text=percent(mean)) for mean in means)])
    return Table(columns=columns, rows=rows)


def _survivor(kept: Sequence[Decayed]) -> str:
    """Say which decay has the lowest error under corruption, and by how much."""
    names = list(dict.fromkeys(one.decay for one in kept))
    errors = {name: _mean_of([one for one in kept if one.decay == name and one.severity]) for name in names}
    known = {name: error for name, error in errors.items() if error is not None}
    clean = {one.decay: one.error.mean for one in kept if one.shift == CLEAN}
    if not known or not clean:
        return "No corruption has been measured yet."
    best, last = min(known, key=lambda name: known[name]), max(known, key=lambda name: known[name])
    lost = known[best] - clean.get(best, known[best])
    return (
        f"Under corruption the stored statistics of {_decay(best)} err least, {percent(known[best])} on average, and "
        f"those of {_decay(last)} most, {percent(known[last])}: {points(known[last] - known[best])} apart, where the "
        f"corruption itself costs {points(lost)}. How long statistics remember training does not answer a later shift."
    )


def _decay(name: str) -> str:
    return f"decay {name}" if name[0].isdigit() else "self-tuned momentum"


def _stream_tables(found: Sequence[Shown]) -> tuple[Block, ...]:
    """Give a table of errors for each kind of stream, at the hardest severity where there are several."""
    blocks: list[Block] = []
    methods = list(dict.fromkeys(one.method for one in found))
    for kind in kinds_of(found):
        here = [one for one in found if one.kind == kind]
        streams = list(dict.fromkeys((one.shift, one.severity) for one in here))
        rows = []
        for shift, severity in streams:
            mine = {one.method: one for one in here if (one.shift, one.severity) == (shift, severity)}
            first = next(iter(mine.values()))
            name = Cell(text=capital(_shift(first)), note=f"{first.images:,} images")
            rows.append([name, *(_error_cell(mine[method], mine.get(STORED)) for method in methods)])
        blocks.append(
            Text(f"{capital(kind_label(kind))}: error, in bold where it is lower than the stored statistics'.")
        )
        blocks.append(Table(columns=("Shift", *(capital(method_label(method)) for method in methods)), rows=rows))
    return tuple(blocks)


def _error_cell(one: Shown, stored: Shown | None) -> Cell:
    if stored is None or one.gain is None or one.method == STORED:
        return Cell(text=percent(one.error.mean))
    tone = "strong" if one.gain.mean > 0 else "bad" if one.gain.mean < -LIMIT else ""
    return Cell(text=percent(one.error.mean), tone=tone)


def _trained(record: Record) -> Spread | None:
    """Give the accuracy of the networks after training, on the validation images as they are."""
    return spread(run.epochs[-1].val_accuracy for run in record.runs if run.status == "finished" and run.epochs)


def _at_chance(record: Record, trained: Spread | None) -> str:
    """Say so where nothing can be said of shift."""
    if trained is None or not is_guessing(trained, chance_of(record)):
        return ""
    return f"The network is no better than guessing ({percent(trained.low)}), so shift costs it nothing"


def _headline(record: Record, found: Sequence[Shown]) -> str:
    share, least = kept_share(found, "gate"), worst(found, "gate")
    if share is None or least is None or least.gain is None:
        return "No corrupted stream has been measured with the gate yet"
    loses = "never loses" if least.gain.mean >= 0 else f"loses at most {points(least.gain.mean)}"
    return (
        f"The gate keeps {percent(share, digits=0)} of what batch statistics win under corruption and {loses} to the "
        "stored ones on any stream"
    )


def _lead(record: Record) -> str:
    config = record.config
    seeds = len(config["seeds"])
    count = seeds_label(seeds)
    return (
        f"One network ({config['network']}) of batch norm, trained for {epochs_label(config['epochs'])} on "
        f"{data_label(record)}; {len(config['corruptions'])} corruptions, streams of "
        f"{config['stream_images']:,} images in batches of {config['stream_batch']}; {count}."
    )


def _method(record: Record) -> tuple[str, ...]:
    config = record.config
    return (
        data_method(record),
        *training_method(record),
        "Running statistics take no part in training, so one training gives those of every decay: a decay of 0.9 is "
        "torch's momentum of 0.1. The ways to adapt begin with those of decay 0.9.",
        f"Corruptions: {_source(record)}. Streams: well mixed; every batch mixing all corruptions; class by class; "
        "bursts of classes (Dirichlet shares, concentration 0.1); the images of one class, drawn at random; and well "
        "mixed, one by one.",
        "Ways: stored; the batch's own; a prior of 16, the stored ones counting as 16 samples beside the batch's; "
        "running statistics that go on following the stream by a decay or self-tuned, each batch seen before it is "
        "predicted; gated layers, each for itself; and the gate, which decides for the whole network whether to adapt. "
        "No way sees a label or takes a gradient, and what is calibrated is so on training images.",
        "Every way predicts the same images, so differences between ways are less noisy than the errors themselves: of "
        f"{config['stream_images']:,} images, one image is {points(1 / config['stream_images'], digits=2)}.",
    )


def _source(record: Record) -> str:
    share = published_share(record)
    made = "made after CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv 1903.12261), which they are not"
    return (
        "CIFAR-10-C's own files"
        if share == 1
        else made
        if share == 0
        else f"in part CIFAR-10-C's own files, else {made}"
    )


def _mean_of(found: Sequence[Decayed]) -> float | None:
    return sum(one.error.mean for one in found) / len(found) if found else None

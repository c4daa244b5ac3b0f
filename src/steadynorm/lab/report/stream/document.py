"""What the report of batch size 1 says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from steadynorm.lab.analysis import Spread, spread
from steadynorm.lab.chance import chance_of
from steadynorm.lab.experiments.stream import STATELESS
from steadynorm.lab.records import Record
from steadynorm.lab.report.curves import Column, Curve, draw_curves
from steadynorm.lab.report.document import (
    Expectations,
    Figures,
    Report,
    Section,
    Text,
    all_measured,
    expected,
    run_as_json,
)
from steadynorm.lab.report.figure import SERIES, Drawing
from steadynorm.lab.report.method import data_method, training_method
from steadynorm.lab.report.page import Cell, Table
from steadynorm.lab.report.quantities import percent, percent_spread, rate, signed_points, spread_note
from steadynorm.lab.report.question import is_guessing
from steadynorm.lab.report.stream.expectations import GATED, LIMIT, PLAIN, expectations, lost
from steadynorm.lab.report.stream.figures import draw_ways
from steadynorm.lab.report.stream.summary import (
    Single,
    Way,
    arm_runs,
    default_runs,
    singles,
    ways,
)
from steadynorm.lab.report.wording import (
    arm_label,
    capital,
    data_label,
    epochs_label,
    listing,
    method_label,
    seeds_label,
)

__all__ = ["make_report"]

VAL_ACCURACY = Column(
    name="val_accuracy", title="Validation accuracy", value=lambda row: row.val_accuracy, is_share=True
)


def make_report(record: Record) -> Report:
    """Say what batch size 1 costs."""
    found, met, default = singles(record), ways(record), _default_accuracy(record)
    table = _table(record, found)
    drawings = [_draw_training(record)] if any(run.epochs for run in record.runs) else []
    ways_drawings = list(draw_ways(met))
    return Report(
        headline=_headline(record, found, default),
        lead=_lead(record),
        table=table,
        sections=(
            Section(key="result", title="Trained at batch size 1", short="Result", blocks=(table, *_notes(record))),
            expected(Expectations(expectations(found, met, default, chance_of(record)))),
            Section(key="training", title="Training", blocks=(Figures(drawings),) if drawings else ()),
            Section(
                key="ways",
                title="The default build meets single images",
                short="Single images",
                blocks=(_ways_table(met), Figures(ways_drawings)) if ways_drawings else (),
            ),
        ),
        method=_method(record),
        finished=all_measured(record),
        findings={
            "default_build": asdict(default) if default else None,
            "arms": [asdict(single) for single in found],
            "ways": [asdict(way) for way in met],
            "limit": LIMIT,
            "runs": [run_as_json(run) for run in record.runs],
        },
    )


def _default_accuracy(record: Record) -> Spread | None:
    return spread(run.epochs[-1].val_accuracy for run in default_runs(record).finished)


def _table(record: Record, found: Sequence[Single]) -> Table:
    columns = (
        "Normalization",
        "Batch",
        "Validation accuracy",
        "Below the default build",
        "With statistics measured anew",
    )
    default = _default_accuracy(record)
    first = [
        Cell(text="Batch norm, the default build", tone="series-0"),
        Cell(text=str(record.config["batch_size"])),
        Cell(text=percent_spread(default), note=spread_note(default)),
        Cell(text=""),
        Cell(text=""),
    ]
    return Table(columns=columns, rows=[first, *(_row(single, place) for place, single in enumerate(found, start=1))])


def _row(single: Single, place: int) -> list[Cell]:
    steps = listing([f"{step:,}" for step in single.diverged_at_step])
    lost = Cell(text=f"diverged at step {steps}", tone="bad")
    return [
        Cell(text=capital(arm_label(single.arm)), tone=f"series-{place % len(SERIES)}"),
        Cell(text="1"),
        Cell(text=percent_spread(single.accuracy), note=spread_note(single.accuracy)) if single.accuracy else lost,
        Cell(text=signed_points(single.drop)),
        Cell(text="no such statistics" if single.arm in STATELESS else percent_spread(single.recalibrated)),
    ]


def _ways_table(met: Sequence[Way]) -> Table:
    orders = list(dict.fromkeys(way.order for way in met))
    columns = ["Statistics", *(f"{capital(order.replace('_', ' '))}, one by one" for order in orders)]
    rows = []
    for method in dict.fromkeys(way.method for way in met):
        mine = [way for way in met if way.method == method]
        cells = [Cell(text=percent_spread(way.accuracy), note=_beside_stored(way)) for way in mine]
        rows.append([Cell(text=capital(method_label(method))), *cells])
    return Table(columns=columns, rows=rows)


def _beside_stored(way: Way) -> str:
    return "" if way.method == "stored" or way.gain is None else f"{signed_points(way.gain)} beside stored"


def _headline(record: Record, found: Sequence[Single], default: Spread | None) -> str:
    gated = next((single for single in found if single.arm == GATED), None)
    if gated is None or gated.drop is None:
        return "No gated network has been trained at batch size 1 yet"
    if default and is_guessing(default, chance_of(record)):
        return f"The default build is no better than guessing ({percent(default.low)}), and has nothing to lose"
    other = next((single for single in found if single.arm == PLAIN and single.drop), None)
    beside = f"; plain batch norm {lost(other.drop)}" if other and other.drop else ""
    return f"At batch size 1 gated batch norm {lost(gated.drop)} on {data_label(record)}{beside}"


def _lead(record: Record) -> str:
    config = record.config
    seeds = len(config["seeds"])
    count = seeds_label(seeds)
    return (
        f"The same network ({config['network']}) trained for {epochs_label(config['epochs'])} on {data_label(record)}, "
        f"in batches of {config['batch_size']} with rate {rate(config['lr'])}, and image by image with rate "
        f"{rate(config['lr'] / config['batch_size'])}; {count}."
    )


def _notes(record: Record) -> tuple[Text, ...]:
    return (
        Text(
            "Points below the default build are differences of the same seed. The last column replaces the running "
            "statistics by those of training images, for the same weights: what it wins was lost by the statistics, "
            "what is still missing by the weights."
        ),
    )


def _draw_training(record: Record) -> Drawing:
    config = record.config
    arms = [arm_runs(record, str(arm)) for arm in config["arms"]]
    curves = [Curve(label="default build", position=0, runs=default_runs(record))]
    curves += [
        Curve(label=arm_label(runs.arm), position=place, runs=runs)
        for place, runs in enumerate(arms, start=1)
        if runs.runs
    ]
    return draw_curves(
        curves,
        VAL_ACCURACY,
        name="val_accuracy",
        caption="After each epoch, in evaluation mode. All but the default build trained at batch size 1.",
        epochs=int(config["epochs"]),
        milestones=[int(epoch) for epoch in config["milestones"]],
    )


def _method(record: Record) -> tuple[str, ...]:
    config = record.config
    return (
        f"{data_method(record)} A seed decides the initial weights and the order of the images, alike in every arm.",
        *training_method(record),
        "At batch size 1 the images come one by one in an order shuffled anew in every epoch, with the learning rate "
        f"divided by {config['batch_size']}; the layers keep their defaults, momentum 0.1 of the running statistics "
        "included. Frozen batch norm has nothing to freeze in a new network: it is a learned weight and bias.",
        f"Single images: {config['stream_images']:,} of the validation images, predicted one by one by the default "
        "build in evaluation. Class-ordered: all of one class, then all of another. A way that follows the stream sees "
        "an image before it predicts it. Calibration, where a way needs one, is on training images.",
    )

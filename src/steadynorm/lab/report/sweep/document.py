"""What the report of a sweep says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from steadynorm.lab.chance import chance_of
from steadynorm.lab.records import Record
from steadynorm.lab.report.document import (
    Block,
    Expectations,
    Figures,
    Report,
    Section,
    Text,
    expected,
    run_as_json,
)
from steadynorm.lab.report.figure import SERIES
from steadynorm.lab.report.method import data_method, training_method
from steadynorm.lab.report.page import Cell, Table
from steadynorm.lab.report.quantities import NONE, number, percent_spread, rate, spread_note
from steadynorm.lab.report.sweep.expectations import expectations
from steadynorm.lab.report.sweep.figures import draw_accuracy, draw_borders
from steadynorm.lab.report.sweep.summary import Border, Place, borders, geometric_mean, is_finished, places
from steadynorm.lab.report.wording import (
    PLAIN,
    arm_label,
    capital,
    data_label,
    epochs_label,
    listing,
    position,
)

__all__ = ["make_report"]


def make_report(record: Record) -> Report:
    """Say what a sweep found."""
    found, limits = places(record), borders(record)
    table = _table(record, found)
    short = Table(
        columns=table.columns,
        rows=[[Cell(text=place.arm), *row[1:]] for place, row in zip(found, table.rows, strict=True)],
    )
    drawings, border_drawings = list(draw_accuracy(record, found)), list(draw_borders(record, limits))
    border_blocks: tuple[Block, ...] = (_border_table(record, limits), Figures(border_drawings)) if limits else ()
    return Report(
        headline=_headline(record, found),
        lead=_lead(record),
        table=short,
        sections=(
            Section(key="result", title="Result", blocks=(table, Text(_seeds_note(record)))),
            expected(Expectations(expectations(found, limits, chance_of(record)))),
            Section(
                key="accuracy",
                title="Accuracy over the learning rate",
                short="Accuracy",
                blocks=(Figures(drawings),) if drawings else (),
            ),
            Section(key="border", title="The largest rate that trains", short="Largest rate", blocks=border_blocks),
        ),
        method=_method(record),
        finished=is_finished(record),
        findings={
            "places": [asdict(place) for place in found],
            "largest_rates": [asdict(border) | {"mean": geometric_mean(border.rates)} for border in limits],
            "runs": [run_as_json(run) for run in record.runs],
        },
    )


def _table(record: Record, found: Sequence[Place]) -> Table:
    columns = ("Normalization", "Depth", "Batch", "Rate", "Validation accuracy", "Outcome")
    rows = [
        [
            Cell(text=capital(arm_label(place.arm)), tone=f"series-{position(record, place.arm) % len(SERIES)}"),
            Cell(text=str(place.depth)),
            Cell(text=str(place.batch_size)),
            Cell(text=rate(place.lr)),
            Cell(text=percent_spread(place.accuracy), note=spread_note(place.accuracy)),
            _outcome(place),
        ]
        for place in found
    ]
    return Table(columns=columns, rows=rows)


def _outcome(place: Place) -> Cell:
    words = []
    if place.exploded_at_step:
        steps = listing([f"{step:,}" for step in place.exploded_at_step])
        who = "" if place.seeds == 1 else f"{len(place.exploded_at_step)} of {place.seeds} "
        words.append(f"{who}exploded at step {steps}")
    if place.guessing:
        words.append("no better than chance" if place.seeds == 1 else f"{place.guessing} of {place.seeds} at chance")
    if place.waiting:
        words.append("waiting" if place.waiting == place.seeds else f"{place.waiting} of {place.seeds} waiting")
    bad = place.exploded_at_step or place.guessing
    return Cell(text=", ".join(words) or ("trained" if place.seeds else "waiting"), tone="bad" if bad else "")


def _border_table(record: Record, limits: Sequence[Border]) -> Table:
    columns = ("Normalization", "Convolutions", "Batch", "Largest rate that trains", "Each seed: trains, fails")
    rows = [
        [
            Cell(text=capital(arm_label(border.arm)), tone=f"series-{position(record, border.arm) % len(SERIES)}"),
            Cell(text=str(border.depth)),
            Cell(text=str(border.batch_size)),
            Cell(text=number(geometric_mean(border.rates))),
            Cell(text="; ".join(f"{number(one.trains)}, {number(one.fails)}" for one in border.brackets) or NONE),
        ]
        for border in limits
    ]
    return Table(columns=columns, rows=rows)


def _headline(record: Record, found: Sequence[Place]) -> str:
    ended = [place for place in found if place.accuracy or place.exploded_at_step]
    if not ended:
        return "No network has ended yet"
    exploded = [place for place in ended if place.exploded_at_step]
    steady = [arm for arm in record.config["arms"] if not any(place.arm == arm for place in exploded)]
    if all(place.guessing and not place.exploded_at_step for place in ended):
        return f"No network is better than guessing, up to rate {rate(max(place.lr for place in ended))}"
    if not exploded:
        return f"Nothing explodes up to rate {rate(max(place.lr for place in ended))} on {data_label(record)}"
    least = min(exploded, key=lambda place: (place.lr, place.depth))
    where = f"explodes from rate {rate(least.lr)} on, at {least.depth} convolutions"
    claim = f"Training {_with(least.arm)} {where}"
    return f"{claim}; {listing([_with(arm) for arm in steady])} nowhere" if steady else claim


def _with(arm: str) -> str:
    return "without normalization" if arm == PLAIN else f"with {arm_label(arm)}"


def _lead(record: Record) -> str:
    config = record.config
    grid = (
        f"{_count(config['arms'], 'normalization')}, {_count(config['lr'], 'learning rate')}, "
        f"{_count(config['batch_size'], 'batch size')} and {_count(config['depth'], 'depth')}"
    )
    seeds = _count(config["seeds"], "seed")
    return f"{capital(grid)}, {seeds} each: {epochs_label(config['epochs'])} on {data_label(record)} for every network."


def _count(values: Sequence[object], word: str) -> str:
    return f"{len(values)} {word}{'' if len(values) == 1 else 's'}"


def _seeds_note(record: Record) -> str:
    if len(record.config["seeds"]) == 1:
        return "There is one seed in each place: another would move these numbers by an unknown amount."
    return "Spreads are the standard deviation over seeds; notes give their range."


def _method(record: Record) -> tuple[str, ...]:
    search = (
        "The largest rate that trains is searched in runs of two epochs of 50 steps at a constant rate: a rate trains "
        "if the mean loss of the second epoch is below ln(classes), that of guessing, and its training accuracy surely "
        "above guessing's. Rates go by factors of 4 from "
        "0.1 until one trains and one does not, then by the geometric middle; above one that fails all are taken to.",
    )
    return (
        f"{data_method(record)} A seed decides the initial weights and the order of the images, alike in every arm and "
        "at every rate.",
        *training_method(record),
        "A run whose loss stops being finite is stopped and counted as exploded, at that step.",
        *(search if record.config["largest_rate"] else ()),
    )

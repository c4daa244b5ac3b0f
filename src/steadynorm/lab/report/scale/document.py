"""What the report of a scaling experiment says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from steadynorm.lab.analysis import are_apart
from steadynorm.lab.chance import chance_of
from steadynorm.lab.recipe import find_recipe
from steadynorm.lab.records import Record
from steadynorm.lab.report.document import Expectations, Figures, Report, Section, Text, expected, run_as_json
from steadynorm.lab.report.figure import SERIES
from steadynorm.lab.report.method import data_method, training_method
from steadynorm.lab.report.page import Cell, Table
from steadynorm.lab.report.quantities import number, percent, percent_spread, points, rate, spread_note
from steadynorm.lab.report.question import is_guessing
from steadynorm.lab.report.scale.expectations import STEPS, WHOLE, expectations, gap
from steadynorm.lab.report.scale.figures import draw_accuracy
from steadynorm.lab.report.scale.summary import Place, find_place, is_finished, last_epochs, places, sizes
from steadynorm.lab.report.wording import capital, data_label, epochs_label, listing

__all__ = ["make_report"]


def make_report(record: Record) -> Report:
    """Say what a scaling experiment found."""
    found = places(record)
    table = _accuracies(record, found)
    is_begun = any(place.accuracy for place in found)
    return Report(
        headline=_headline(record, found),
        lead=_lead(record),
        table=table,
        sections=(
            Section(key="result", title="Result", blocks=(table, Text(_seeds_note(record)))),
            expected(Expectations(expectations(record, found))),
            Section(
                key="accuracy",
                title="Accuracy over the batch size",
                short="Accuracy",
                blocks=(Figures([draw_accuracy(found)]),) if is_begun else (),
            ),
            Section(
                key="speed",
                title="Speed",
                blocks=(_speeds(record, found),) if is_begun else (),
            ),
        ),
        method=_method(record),
        finished=is_finished(record),
        findings={
            "last_epochs": last_epochs(record),
            "places": [asdict(place) for place in found],
            "runs": [run_as_json(run) for run in record.runs],
        },
    )


def _accuracies(record: Record, found: Sequence[Place]) -> Table:
    return _table(record, found, _accuracy)


def _speeds(record: Record, found: Sequence[Place]) -> Table:
    return _table(record, found, lambda place: Cell(text=_speed(place)))


def _speed(place: Place) -> str:
    value = place.images_per_second
    return f"{number(value.mean if value else None)}{' /s' if value else ''}"


def _table(record: Record, found: Sequence[Place], cell: Callable[[Place], Cell]) -> Table:
    """Make a row for each variant and a column for each batch size."""
    rows = []
    for index, variant in enumerate(dict.fromkeys(place.variant for place in found)):
        name = Cell(text=capital(find_recipe(variant).summary), tone=f"series-{index % len(SERIES)}")
        rows.append([name, *(cell(place) for place in found if place.variant == variant)])
    return Table(columns=("Variant", *(f"Batch {size:,}" for size in sizes(record))), rows=rows)


def _accuracy(place: Place) -> Cell:
    words = [percent_spread(place.accuracy)] if place.accuracy else []
    if place.exploded_at_step:
        steps = listing([f"{step:,}" for step in place.exploded_at_step])
        who = "" if place.seeds == 1 else f"{len(place.exploded_at_step)} of {place.seeds} "
        words.append(f"{who}exploded at step {steps}")
    if place.waiting or not place.seeds:
        words.append("waiting")
    note = f"rate {rate(place.lr)}; {spread_note(place.accuracy)}" if place.accuracy else f"rate {rate(place.lr)}"
    return Cell(text=", ".join(words), note=note, tone="bad" if place.exploded_at_step else "")


def _headline(record: Record, found: list[Place]) -> str:
    batches = sizes(record)
    small, large = (find_place(found, WHOLE, size) for size in (batches[0], batches[-1]))
    if large is None or large.accuracy is None:
        return "No network of the whole recipe has ended at the largest batch yet"
    if is_guessing(large.accuracy, chance_of(record)):
        return f"At batch {batches[-1]:,} the whole recipe is no better than guessing: {percent(large.accuracy.low)}"
    text = f"The whole recipe reaches {percent(large.accuracy.mean)} at batch {batches[-1]:,}"
    if small is not None and small.accuracy is not None and small is not large:
        behind = gap(small, large)
        text += f", {points(behind)} {'below' if behind > 0 else 'above'} batch {batches[0]:,}"
    losses = {
        variant: gap(large, other)
        for variant, _ in STEPS
        if (other := find_place(found, variant, batches[-1]))
        and other.accuracy
        and are_apart(large.accuracy, other.accuracy)
    }
    if losses:
        best = min(losses, key=losses.__getitem__)
        worst = max(losses, key=lambda variant: losses[variant] if variant != "plain" else 0.0)  # which is no step
        if losses[best] < 0:
            text += f"; {find_recipe(best).summary} it reaches {points(losses[best])} more there"
        elif worst != "plain":
            text += f"; the step that matters most there: {find_recipe(worst).summary} it loses {points(losses[worst])}"
    return text


def _lead(record: Record) -> str:
    config = record.config
    count = len(config["seeds"])
    return (
        f"{len(config['variants'])} variants of the recipe at {len(config['batch_size'])} batch sizes, {count} "
        f"seed{'' if count == 1 else 's'} each: {epochs_label(config['epochs'])} on {data_label(record)} for every "
        "network, so that all see the same images as often."
    )


def _seeds_note(record: Record) -> str:
    last = last_epochs(record)
    median = "the last epoch" if last == 1 else f"the median of the last {last} epochs"
    if len(record.config["seeds"]) == 1:
        return f"Accuracy is that of {median}. There is one seed: another would move it by an unknown amount."
    return f"Accuracy is that of {median}. Spreads are the standard deviation over seeds; notes give their range."


def _method(record: Record) -> tuple[str, ...]:
    config, workers = record.config, record.resolved.get("workers", 1)
    return (
        data_method(record),
        *training_method(record),
        f"The recipe: at batch B the rate is {rate(config['lr'])} · B / {config['reference_batch']} and rises to it "
        f"from {rate(config['lr'])} over {epochs_label(config['warm_up'])}; the weight of the last normalization of "
        "every residual block starts at zero; normalizations and biases have no weight decay; batch norm normalizes 32 "
        "images at a time. torch's momentum does not hold the rate, so it needs no correction as the rate moves.",
        "Without linear scaling the rate is that of the reference batch and needs no warm-up. Statistics of the whole "
        f"batch are of what is in memory at once, at most {config['at_once']:,} images. Frozen at the end: batch norms "
        f"normalize by their running statistics in the last {epochs_label(config['freeze_last'])}.",
        "Speed: training images per second, the median of a network's epochs, on "
        f"{workers} worker{'' if workers == 1 else 's together'}.",
    )

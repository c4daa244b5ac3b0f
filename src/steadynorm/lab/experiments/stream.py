"""Batch size 1, in random class order: train with it from scratch, and evaluate a network trained on batches with it.

Question: how much accuracy does batch size 1 cost, and does a layer that is gated between the batch and its memory pay
less than the others?

Expected (the article): the gated layer is falsified if its accuracy at batch size 1 falls more than 15 points below
the default build's, batch norm trained on batches of 128. Every arm sees the same number of images; the learning rate
is scaled with the batch size (Goyal et al. 2017, arXiv 1706.02677). Plain batch norm should fail in evaluation: its
running statistics remember ten images.

Then the default build predicts the test images one by one: by its stored statistics, by those of each image, and by
those that follow the stream; what is lost against the stored ones is the price of each method.

Cost: a step of one image takes some 5 ms on a core, so 30,000 images and five arms a quarter of an hour for each seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from operator import attrgetter
from typing import Any

from torch import nn

from steadynorm.adaptation import ADAPTATIONS, Calibration
from steadynorm.lab.arms import parse_arm
from steadynorm.lab.cells import Job, Measure, measure_cells
from steadynorm.lab.configuration import OneRateConfig, check_arms, check_experiment, check_split, settings_of
from steadynorm.lab.data import evaluation_batches, some
from steadynorm.lab.data.streams import stream
from steadynorm.lab.describe.arms import Arm, Reduction, arms_at, final, finals, if_finished
from steadynorm.lab.describe.claims import expected, tolerated
from steadynorm.lab.describe.figures import chart, curves
from steadynorm.lab.describe.method import method_of, sentences
from steadynorm.lab.describe.names import arm_labels, data_label, method_label
from steadynorm.lab.describe.networks import all_measured, networks_as_json
from steadynorm.lab.describe.tables import accuracy_entry, arm_cell
from steadynorm.lab.evaluation import evaluate
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.judging import (
    calibrated,
    calibration_images,
    check_methods,
    check_possible,
    judge_methods,
    left_out_methods,
    without_uncalibrated,
)
from steadynorm.lab.training import network, train_networks
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.claims import compare, is_guessing, judge, too_few, unless_guessing
from steadynorm.reporting.numbers import percent, percent_spread, points, rate, signed_points
from steadynorm.reporting.records import Cell, Factors, Measurement, Record
from steadynorm.reporting.report import Block, Claim, Claims, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import Spread, spread
from steadynorm.reporting.words import capital
from steadynorm.surgery import recalibrate_
from steadynorm.surgery.named_modules import batch_norms_of

__all__ = ["DEFAULT_BUILD", "EXPERIMENT", "ORDERS", "STATELESS", "StreamConfig", "default_build", "single"]

DEFAULT_BUILD = "batch_norm"
"""Arm of the comparison, trained on whole batches."""
ORDER_LABELS = {"iid": "well mixed", "class_ordered": "class by class"}
"""Orders in which the test images arrive one by one, with their names."""
ORDERS = tuple(ORDER_LABELS)
STATELESS = ("group_norm", "layer_norm", "instance_norm", "none", "frozen_batch_norm")
"""Arms whose evaluation uses no running statistics that training updates."""
CALIBRATION = 1000  # training images for the calibration of methods and for new statistics
CALIBRATION_BATCH = 100
LIMIT = 0.15
"""The article's limit: a larger drop falsifies the gated layer."""
SAFE = 0.005
"""Largest accepted loss by adapting."""
GATED, PLAIN = "gated_batch_norm", "batch_norm"
"""Arms with an expectation."""
STORED, GATED_LAYERS, GATE = "stored", "gated", "gate"
"""Methods that the report names; the second turns batch norms into gated layers."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig(OneRateConfig):
    """Train at batch size 1, compare with the default build, and let that build predict a stream of single images.

    The default build is batch norm on batches of --batch-size at rate --lr; at batch size 1 the rate is divided by
    --batch-size.
    """

    arms: tuple[str, ...] = ("gated_batch_norm", "batch_norm", "batch_renorm", "frozen_batch_norm", "group_norm")
    """Normalizations that train at batch size 1, as in steadynorm compare."""
    methods: tuple[str, ...] = tuple(ADAPTATIONS)
    """Methods by which the default build chooses statistics on the stream."""
    stream_images: int = 1000
    """Test images in each stream; all of them if there are fewer."""
    widths: tuple[int, ...] = (16, 32, 64)
    epochs: int = 3
    milestones: tuple[int, ...] = (2,)


QUICK: dict[str, Any] = {"arms": ("gated_batch_norm", "batch_norm"), "widths": (8, 16, 32), "batch_size": 16}
QUICK |= {"lr": 0.01, "epochs": 3, "milestones": (2,), "train_images": 512, "stream_images": 40}


def _work(task: Task[StreamConfig]) -> None:
    """Train the default build and every arm at batch size 1, then measure with the trained networks."""
    methods = without_uncalibrated(task.config.methods, task.dataset, task.display)
    task = replace(task, config=replace(task.config, methods=methods))
    config = task.config
    networks = [
        one
        for seed in config.seeds
        for one in (default_build(config, seed), *(single(config, arm, seed) for arm in config.arms))
    ]
    trained = train_networks(task, networks, settings_of(config, task.record))
    finished = [cell.factors for cell in trained if cell.status == "finished"]
    grid: list[Factors] = []
    for seed in config.seeds:
        grid += [
            {"part": "recalibrated", "arm": arm, "seed": seed}
            for arm in config.arms
            if single(config, arm, seed) in finished
        ]
        if default_build(config, seed) in finished:
            grid += [{"part": "stream", "order": order, "seed": seed} for order in ORDERS]
    measure_cells(grid, _measure, task)


def default_build(config: StreamConfig, seed: int) -> Factors:
    """Return the settings of the default build."""
    return network(arm=DEFAULT_BUILD, seed=seed, lr=config.lr, epochs=config.epochs)


def single(config: StreamConfig, arm: str, seed: int) -> Factors:
    """Return the settings of an arm at batch size 1."""
    return network(arm=arm, seed=seed, lr=config.lr / config.batch_size, epochs=config.epochs, batch_size=1)


def _measure(task: Task[StreamConfig]) -> Measure:
    """Make the function that measures a cell; each checkpoint is loaded and calibrated once."""
    config, settings = task.config, settings_of(task.config, task.record)
    few = calibration_images(task.dataset, CALIBRATION, batch_size=CALIBRATION_BATCH)
    predict = partial(judge_methods, config.methods, dataset=task.dataset, settings=settings)

    @cache
    def adapting(seed: int) -> tuple[nn.Module, Calibration | None]:
        model = task.trained(default_build(config, seed))
        return model, calibrated(config.methods, model, training_batches())

    def training_batches() -> Iterator[Any]:
        return evaluation_batches(few, dataset=task.dataset, batch_size=CALIBRATION_BATCH, device=settings.device)

    def measure(job: Job) -> Iterator[Measurement]:
        seed = job.factors["seed"]
        if job.factors["part"] == "recalibrated":
            model = task.trained(single(config, job.factors["arm"], seed))
            if not _is_stateless(job.factors["arm"]):
                if not batch_norms_of(model):  # a user class, whose statistics are unknown here
                    return
                recalibrate_(model, training_batches())
            _, accuracy = evaluate(model, task.dataset.validation, task.dataset, settings)
            yield Measurement(quantity="accuracy", value=accuracy)
            return
        images = some(task.dataset.validation, config.stream_images)
        order = stream(images.labels, job.factors["order"], batch_size=1, seed=seed)
        yield from predict(*adapting(seed), images, order, advance=job.advance)

    return measure


def _is_stateless(arm: str) -> bool:
    return parse_arm(arm).target in STATELESS


def _check(config: StreamConfig) -> None:
    check_arms(config.arms)
    check_methods(config.methods)
    check_experiment(config, ("arms", "methods"), least={"batch_size": 2, "stream_images": 1})
    check_split(config.batch_size, 1)


def describe(record: Record) -> Report:
    """Describe the cost of batch size 1."""
    default, arms = spread(_defaults(record).values()), arms_of(record)
    results = [one for order in ORDERS for one in on_single_images(record, order)]
    table = _table(record, arms, default)
    return Report(
        headline=_headline(record, arms, default),
        lead=sentences(record, LEAD, lr_of_one=rate(record.config["lr"] / record.config["batch_size"])),
        table=table,
        sections=(
            Section(title="Result", blocks=(Figures(_training(record)), table, Text(" ".join(NOTE.split())))),
            expected(_whose(record), Claims(_claims(record, arms, results, default))),
            Section(title="The default build on single images", short="Single images", blocks=_single_images(results)),
        ),
        method=method_of(record, METHOD, stream_images=_stream_images(record), no_gate=left_out_methods(record)),
        finished=all_measured(record),
        findings={
            "default_build": default,
            "arms": [
                {"arm": arm.arm, "seeds": arm.seeds, "diverged_at_step": arm.diverged_at_step, **arm.spreads}
                for arm in arms
            ],
            "ways": [{"method": one.arm, **one.at, **one.spreads} for one in results],
            "limit": LIMIT,
            "runs": networks_as_json(record),
        },
    )


def _stream_images(record: Record) -> int:
    return min(int(record.config["stream_images"]), int(record.resolved["validation_images"]))


def _whose(record: Record) -> Text | None:
    """Name the data for which the limit was set, if these are others."""
    if record.config["data"] == "cifar10":
        return None
    return Text(
        f"The limit of {points(LIMIT, digits=0)} is the article's, for CIFAR-10, and is kept for {data_label(record)}."
    )


def _defaults(record: Record) -> dict[int, float]:
    """Return seed -> accuracy of the default build."""
    return finals(record.select(part=None, arm=DEFAULT_BUILD, batch_size=None))


def arms_of(record: Record) -> list[Arm]:
    """Reduce the networks of batch size 1 to their numbers.

    ``drop`` is how far the accuracy is below the default build's of the same seed; ``recalibrated`` the accuracy once
    the running statistics are those of training images, for the weights as they are.
    """
    default = _defaults(record)
    again = {tuple(cell.factors[name] for name in ("arm", "seed")): cell for cell in record.select(part="recalibrated")}

    def drop(run: Cell) -> float:
        return default.get(run.factors["seed"], math.nan) - run.last("val_accuracy")

    def recalibrated(run: Cell) -> float:
        cell = again.get((run.factors["arm"], run.factors["seed"]))
        return cell.values("accuracy").get("", math.nan) if cell else math.nan

    quantities = {"accuracy": final("val_accuracy"), "drop": if_finished(drop), "recalibrated": recalibrated}
    return arms_at(record, quantities, arm=record.config["arms"], batch_size=[1])


def on_single_images(record: Record, order: str) -> list[Arm]:
    """Reduce the default build's streams of this order, for each method, to accuracy and gain over the stored ones."""

    def accuracy(method: str) -> Reduction:
        return lambda cell: cell.values("accuracy").get(method, math.nan)

    def gain(method: str) -> Reduction:
        return lambda cell: accuracy(method)(cell) - accuracy(STORED)(cell)

    cells = record.select(part="stream", order=order)
    return [
        Arm.of(method, cells, {"accuracy": accuracy(method), "gain": gain(method)}, at={"order": order})
        for method in map(str, record.config["methods"])
    ]


NOTE = """
Points below the default build are differences of the same seed. The last column replaces the running statistics by
those of training images, for the same weights: what it wins was lost by the statistics, what is still missing by the
weights.
"""


def _table(record: Record, arms: Sequence[Arm], default: Spread | None) -> Table:
    """Lay out the default build, then a row for each arm."""
    first = Entry(text="Batch norm, the default build", tone="series-0")
    columns: Mapping[str, Callable[[Arm | None], Entry | str]] = {
        "Normalization": lambda arm: arm_cell(record, arm.arm, before=1) if arm else first,
        "Batch": lambda arm: "1" if arm else str(record.config["batch_size"]),
        "Validation accuracy": lambda arm: _accuracy(arm) if arm else accuracy_entry(default),
        "Below the default build": lambda arm: signed_points(arm["drop"]) if arm else "",
        "With statistics measured again": lambda arm: _measured_again(arm) if arm else "",
    }
    return Table.of([None, *arms], columns)


def _accuracy(arm: Arm) -> Entry:
    """Return the accuracy, or the steps at which an arm without one diverged."""
    if arm["accuracy"] or not arm.lost:
        return accuracy_entry(arm["accuracy"])
    return Entry(text=arm.lost, tone="bad")


def _measured_again(arm: Arm) -> str:
    return "no such statistics" if _is_stateless(arm.arm) else percent_spread(arm["recalibrated"])


def _training(record: Record) -> list[Figure]:
    """Draw validation accuracy over the epochs, the default build's first."""
    runs = {"default build": record.select(part=None, arm=DEFAULT_BUILD, batch_size=None)}
    runs |= {str(arm): record.select(part=None, arm=arm, batch_size=1) for arm in record.config["arms"]}
    return curves(
        record,
        runs,
        "val_accuracy",
        title="Validation accuracy",
        caption="After each epoch, in evaluation mode. All but the default build trained at batch size 1.",
        order=["default build", *arm_labels(record)],
    )


def _single_images(results: Sequence[Arm]) -> tuple[Block, ...]:
    """Draw what each method gains over the stored statistics, and lay out its accuracy."""
    rows = [
        {"statistics": method_label(one.arm), "order": ORDER_LABELS[one.at["order"]]}
        | {end: 100 * getattr(gain, of) for end, of in (("gain", "mean"), ("low", "low"), ("high", "high"))}
        for one in results
        if (gain := one["gain"]) and one.arm != STORED
    ]
    axes: dict[str, Any] = {"rows": "statistics", "x": "gain", "ends": ("low", "high"), "x_title": "points"}
    figures = chart(
        "dot_ranges",
        rows,
        name="ways",
        title="Gain over the stored statistics",
        caption="Dot: mean of the seeds. Line: lowest to highest.",
        **axes,
        signed=True,
        hue="order",
        order=list(ORDER_LABELS.values()),
    )
    known = {(one.at["order"], one.arm): one for one in results}

    def column(order: str) -> Callable[[str], Entry]:
        return lambda method: _of_method(known[order, method])

    columns = {f"{capital(label)}, one by one": column(order) for order, label in ORDER_LABELS.items()}
    methods = dict.fromkeys(one.arm for one in results)
    table = Table.of(methods, {"Statistics": lambda method: capital(method_label(method)), **columns})
    return (Figures(figures), table) if rows else ()


def _of_method(one: Arm) -> Entry:
    note = f"{signed_points(one['gain'])} against stored" if one["gain"] and one.arm != STORED else ""
    return Entry(text=percent_spread(one["accuracy"]), note=note)


def _claims(record: Record, arms: Sequence[Arm], results: Sequence[Arm], default: Spread | None) -> list[Claim]:
    chance, named = chance_of(record), {arm.arm: arm for arm in arms}
    gated, plain = named.get(GATED), named.get(PLAIN)
    pair = {arm.label: arm["accuracy"] for arm in (gated, plain) if arm}
    pays_less = compare(
        "At batch size 1 the gated layer loses less than plain batch norm.",
        *(arm["accuracy"] if arm else None for arm in (gated, plain)),
        higher=True,
        what="validation accuracy",
        names=("with the gate", "without"),
        shown=percent,
        absent="Not both were trained to the end.",
    )
    if all(
        accuracy and is_guessing(accuracy, chance) for accuracy in pair.values()
    ):  # one arm at chance alone is a finding
        pays_less = unless_guessing(pays_less, chance, pair)
    judged = (
        _falsifier(gated, default, chance.share),
        _evaluated([gain for one in results if one.arm == GATED_LAYERS and (gain := one["gain"])]),
        pays_less,
        _statistics_are_to_blame(plain),
        *(_costs_nothing(one, _stream_images(record)) for one in results if one.arm == GATE),
    )
    return [unless_guessing(item, chance, {"the default build": default}) for item in judged]


def _falsifier(gated: Arm | None, default: Spread | None, chance: float) -> Claim:
    claim = f"The gated layer loses at most {points(LIMIT, digits=0)} at batch size 1 (a larger drop falsifies it)."
    diverged = gated.diverged_at_step if gated else ()
    if gated is None or (drop := gated["drop"]) is None:
        return judge(claim, False if diverged else None, "Every run diverged." if diverged else "It was not trained.")
    if default and default.mean < LIMIT + chance:
        reached = f"The default build itself reaches {percent(default.mean)}"
        return judge(claim, None, f"{reached}, too near the {percent(chance)} of guessing to lose so much.")
    within = drop.high <= LIMIT
    seeds = "one seed" if drop.n == 1 else f"{signed_points(drop)}, {drop.n} seeds, at most {points(drop.high)}"
    worst = f"{points(LIMIT - drop.high)} {'within' if within else 'beyond'} the limit at worst"
    lost = f" {len(diverged)} of {gated.seeds} runs diverged." if diverged else ""
    return judge(claim, within and not diverged, f"It {_lost(drop)} ({seeds}), {worst}.{lost}")


def _evaluated(gains: Sequence[Spread]) -> Claim:
    claim = "Nor does it lose more when only evaluation is at batch size 1, as gated layers of the default build."
    if not gains:
        return judge(claim, None, "It was not measured.")
    least = min(gains, key=attrgetter("low"))
    text = f"{signed_points(least)} against the stored statistics in the worse of {len(gains)} orders."
    return judge(claim, least.low >= -LIMIT, text)


def _statistics_are_to_blame(plain: Arm | None) -> Claim:
    claim = "Plain batch norm fails in evaluation, by its running statistics and not by its weights."
    accuracy, again, drop = (plain[name] if plain else None for name in ("accuracy", "recalibrated", "drop"))
    if accuracy is None or again is None or drop is None:
        return judge(claim, None, "It was not trained to the end.")
    won = again.mean - accuracy.mean
    found = f"win {points(won)} of them back" if won >= 0 else f"lose {points(won)} more"
    return judge(claim, won > drop.mean / 2 > 0, f"It {_lost(drop)}; statistics measured again {found}.")


def _costs_nothing(one: Arm, images: int) -> Claim:
    order, gain = ORDER_LABELS[one.at["order"]], one["gain"]
    allowed = tolerated(SAFE, images)
    claim = f"The gate costs the default build at most {points(allowed)} on single images, {order}."
    if gain is None:
        return judge(claim, None, "It was not measured there.")
    return judge(claim, gain.low >= -allowed, f"{signed_points(gain)} against the stored statistics.")


LEAD = """
The same network ({network}) trained for {epochs} on {data}, in batches of {batch_size} with rate {lr}, and image by
image with rate {lr_of_one}; {seeds}.
"""
METHOD = """
At batch size 1 the images come one by one in an order shuffled again for every epoch, with the learning rate divided by
{batch_size}; the layers keep their defaults, momentum 0.1 of the running statistics included. Frozen batch norm has
nothing to freeze in a new network: it is a learned weight and bias.

Single images: {stream_images} of the validation images, predicted one by one by the default build in evaluation.
Class by class: all of one class, then all of another. A method that follows the stream sees an image before it predicts
it. Calibration, where a method needs one, is on training images.{no_gate}
"""


def _lost(drop: Spread) -> str:
    """Describe how much accuracy was lost or won."""
    return f"{'loses' if drop.mean >= 0 else 'gains'} {points(drop.mean)}"


def _headline(record: Record, arms: Sequence[Arm], default: Spread | None) -> str:
    drops = {arm.arm: drop for arm in arms if (drop := arm["drop"])}
    if GATED in [arm.arm for arm in arms if arm.lost and not arm["accuracy"]]:
        return "At batch size 1 gated batch norm diverged"
    if GATED not in drops:
        return "No gated network has been trained at batch size 1 yet"
    if default and is_guessing(default, chance_of(record)):
        said = f"The default build is not surely better than guessing ({percent(default.low)}): it has little to lose"
        return too_few(chance_of(record)) or said
    beside = f", plain batch norm {_lost(drops[PLAIN])}" if PLAIN in drops else ""
    return f"At batch size 1 gated batch norm {_lost(drops[GATED])}{beside}"


EXPERIMENT = Experiment(
    name="stream",
    config=StreamConfig,
    quick=QUICK,
    check=_check,
    work=_work,
    describe=describe,
    fits=lambda config, dataset: check_possible(config.methods, dataset),
    trains=lambda config: dict.fromkeys((DEFAULT_BUILD, *config.arms)),
)

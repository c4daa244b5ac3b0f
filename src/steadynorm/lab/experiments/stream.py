"""Batch size 1, in random class order: train on it from scratch, and meet it with a network trained on batches.

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

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from operator import attrgetter
from typing import Any

from torch import nn

from steadynorm.adaptation import ADAPTATIONS, Calibration, calibrate
from steadynorm.lab.cells import Job, Measure, measure_cells
from steadynorm.lab.configuration import (
    OneRateConfig,
    check_arms,
    check_at_least,
    check_experiment,
    check_lists,
    check_one_rate,
    check_split,
    settings_of,
)
from steadynorm.lab.data import evaluation_batches, first
from steadynorm.lab.data.streams import stream
from steadynorm.lab.describe import (
    accuracy_entry,
    all_measured,
    arm_cell,
    arm_label,
    arm_labels,
    curves,
    data_label,
    data_method,
    diverged_at_steps,
    expected,
    finals,
    method_label,
    networks_as_json,
    training_method,
)
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.judging import check_methods, judge_methods
from steadynorm.lab.training import evaluate, network, train_networks
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.claims import compare, is_guessing, judge, unless_guessing
from steadynorm.reporting.numbers import percent, percent_spread, points, rate, signed_points
from steadynorm.reporting.records import Cell, Factors, Measurement, Record
from steadynorm.reporting.report import Block, Claim, Claims, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import Spread, spread, spreads
from steadynorm.reporting.words import capital, counted, listing, seeds_label
from steadynorm.surgery import recalibrate_

__all__ = ["DEFAULT_BUILD", "EXPERIMENT", "ORDERS", "STATELESS", "StreamConfig", "default_build", "single"]

DEFAULT_BUILD = "batch_norm"
"""The arm that is trained on whole batches, to be compared with."""
ORDERS = ("iid", "class_ordered")
"""How the test images arrive, one by one."""
STATELESS = ("group_norm", "layer_norm", "instance_norm", "none", "frozen_batch_norm")
"""Arms whose evaluation has no running statistics that training moves."""
CALIBRATION = 1000  # training images that a network's methods are calibrated on, and statistics measured on
CALIBRATION_BATCH = 100
LIMIT = 0.15
"""The article's: a larger drop falsifies the gated layer."""
SAFE = 0.005
"""What adapting may cost."""
GATED, PLAIN = "gated_batch_norm", "batch_norm"
"""Arms of which something is expected."""
STORED, GATED_LAYERS, GATE = "stored", "gated", "gate"
"""Methods that the report names; the second makes gated layers of batch norm's."""


@dataclass(frozen=True, kw_only=True)
class StreamConfig(OneRateConfig):
    """Train at batch size 1 beside the default build, and let that build meet a stream of single images.

    The default build is batch norm on batches of --batch-size at rate --lr; at batch size 1 the rate is divided by
    --batch-size.
    """

    arms: tuple[str, ...] = ("gated_batch_norm", "batch_norm", "batch_renorm", "frozen_batch_norm", "group_norm")
    """Normalizations that train at batch size 1, as in steadynorm compare."""
    methods: tuple[str, ...] = tuple(ADAPTATIONS)
    """Methods by which the default build chooses statistics on the stream."""
    stream_images: int = 1000
    """Test images in each stream."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Channels of each stage of the cnn; a stage ends with 2x2 pooling."""
    epochs: int = 3
    """Passes over the training images."""
    milestones: tuple[int, ...] = (2,)
    """Epochs after which the learning rate is divided by ten."""


QUICK: dict[str, Any] = {
    "arms": ("gated_batch_norm", "batch_norm", "group_norm"),
    "widths": (8, 16, 32),
    "epochs": 2,
    "milestones": (1,),
    "train_images": 512,
    "stream_images": 60,
}


def _work(task: Task[StreamConfig]) -> None:
    """Train the default build and every arm at batch size 1, then measure what needs the trained networks."""
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
    """Say how the default build is trained."""
    return network(arm=DEFAULT_BUILD, seed=seed, lr=config.lr, epochs=config.epochs)


def single(config: StreamConfig, arm: str, seed: int) -> Factors:
    """Say how an arm is trained at batch size 1."""
    return network(arm=arm, seed=seed, lr=config.lr / config.batch_size, epochs=config.epochs, batch_size=1)


def _measure(task: Task[StreamConfig]) -> Measure:
    """Make what measures a cell; a checkpoint is read and calibrated once."""
    config, settings = task.config, settings_of(task.config, task.record)
    few = first(task.dataset.train, CALIBRATION)

    @cache
    def adapting(seed: int) -> tuple[nn.Module, Calibration]:
        model = task.trained(default_build(config, seed))
        return model, calibrate(model, training_batches())

    def training_batches() -> Iterator[Any]:
        return evaluation_batches(few, dataset=task.dataset, batch_size=CALIBRATION_BATCH, device=settings.device)

    def measure(job: Job) -> Iterator[Measurement]:
        seed = job.factors["seed"]
        if job.factors["part"] == "recalibrated":
            model = task.trained(single(config, job.factors["arm"], seed))
            if job.factors["arm"] not in STATELESS:
                recalibrate_(model, training_batches())
            _, accuracy = evaluate(model, task.dataset.validation, task.dataset, settings)
            yield Measurement(quantity="accuracy", value=accuracy)
            return
        model, calibration = adapting(seed)
        images = first(task.dataset.validation, config.stream_images)
        order = stream(images.labels, job.factors["order"], batch_size=1, seed=seed)
        yield from judge_methods(
            config.methods,
            model,
            calibration,
            images,
            order,
            dataset=task.dataset,
            settings=settings,
            advance=job.advance,
        )

    return measure


def _check(config: StreamConfig) -> None:
    check_arms(config.arms)
    check_methods(config.methods)
    check_lists(config, ("arms", "methods"))
    check_experiment(config)
    check_split(config.batch_size, 1)
    check_at_least(config, (("batch_size", 2), ("stream_images", 1)))
    check_one_rate(config)


def describe(record: Record) -> Report:
    """Say what batch size 1 costs."""
    default = spread(finals(_runs(record, DEFAULT_BUILD, None)).values())
    arms = [summarise(record, str(arm)) for arm in record.config["arms"]]
    results = [one for order in ORDERS for one in on_single_images(record, order)]
    table = _table(record, arms, default)
    note = (
        "Points below the default build are differences of the same seed. The last column replaces the running "
        "statistics by those of training images, for the same weights: what it wins was lost by the statistics, what "
        "is still missing by the weights."
    )
    return Report(
        headline=_headline(record, arms, default),
        lead=_lead(record),
        table=table,
        sections=(
            Section(title="Result", blocks=(Figures([*_training(record)]), table, Text(note))),
            expected(
                Claims(_claims(record, arms, results, default)),
            ),
            Section(title="The default build on single images", short="Single images", blocks=_single_images(results)),
        ),
        method=_method(record),
        finished=all_measured(record),
        findings={
            "default_build": asdict(default) if default else None,
            "arms": [asdict(one) for one in arms],
            "ways": [asdict(one) for one in results],
            "limit": LIMIT,
            "runs": networks_as_json(record),
        },
    )


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One arm trained at batch size 1; spreads are over the seeds."""

    arm: str
    seeds: int
    diverged_at_step: tuple[int, ...]
    accuracy: Spread | None
    """On the validation images after the last epoch."""
    drop: Spread | None
    """Accuracy of the default build less that, seed by seed."""
    recalibrated: Spread | None
    """Accuracy once the running statistics are those of training images, for the weights as they are."""


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """The default build on single images that come in one order, by one method; spreads are over the seeds."""

    method: str
    order: str
    accuracy: Spread | None
    gain: Spread | None
    """Accuracy less that of the stored statistics on the same images, seed by seed."""


def summarise(record: Record, arm: str) -> ArmResult:
    """Reduce the runs of an arm at batch size 1 to its numbers."""
    runs, default = _runs(record, arm), finals(_runs(record, DEFAULT_BUILD, None))
    accuracies, cells = finals(runs), record.select(part="recalibrated", arm=arm)
    return ArmResult(
        arm=arm,
        seeds=len(runs),
        diverged_at_step=diverged_at_steps(runs),
        accuracy=spread(accuracies.values()),
        drop=spread(default[seed] - value for seed, value in accuracies.items() if seed in default),
        recalibrated=spread(value for cell in cells for value in cell.values("accuracy").values()),
    )


def on_single_images(record: Record, order: str) -> list[MethodResult]:
    """Summarise every method where the images come in this order."""
    found = [cell.values("accuracy") for cell in record.select(part="stream", order=order)]
    accuracy = spreads(found)
    gain = spreads({name: value - each[STORED] for name, value in each.items()} for each in found if STORED in each)
    return [
        MethodResult(method=method, order=order, accuracy=accuracy.get(method), gain=gain.get(method))
        for method in map(str, record.config["methods"])
    ]


def _runs(record: Record, arm: str, batch_size: int | None = 1) -> list[Cell]:
    return record.select(part=None, arm=arm, batch_size=batch_size)


# What the tables and figures show.


def _table(record: Record, arms: Sequence[ArmResult], default: Spread | None) -> Table:
    """Lay out the default build, then a row for each arm."""
    first = Entry(text="Batch norm, the default build", tone="series-0")
    rows: list[ArmResult | None] = [None, *arms]
    return Table.of(
        rows,
        {
            "Normalization": lambda one: arm_cell(record, one.arm, before=1) if one else first,
            "Batch": lambda one: "1" if one else str(record.config["batch_size"]),
            "Validation accuracy": lambda one: _accuracy(one) if one else accuracy_entry(default),
            "Below the default build": lambda one: signed_points(one.drop) if one else "",
            "With statistics measured again": lambda one: _measured_anew(one) if one else "",
        },
    )


def _accuracy(one: ArmResult) -> Entry:
    """Give the accuracy, or the steps at which an arm diverged that has none."""
    if one.accuracy or not one.diverged_at_step:
        return accuracy_entry(one.accuracy)
    return Entry(text=f"diverged at step {listing([f'{step:,}' for step in one.diverged_at_step])}", tone="bad")


def _measured_anew(one: ArmResult) -> str:
    return "no such statistics" if one.arm in STATELESS else percent_spread(one.recalibrated)


def _training(record: Record) -> Iterator[Figure]:
    """Draw validation accuracy over the epochs, the default build's first."""
    runs = {"default build": _runs(record, DEFAULT_BUILD, None)}
    runs |= {arm_label(arm): _runs(record, arm) for arm in record.config["arms"]}
    if any(run.series("val_accuracy") for run in record.networks):
        yield curves(
            runs,
            "val_accuracy",
            title="Validation accuracy",
            caption="After each epoch, in evaluation mode. All but the default build trained at batch size 1.",
            order=["default build", *arm_labels(record)],
            config=record.config,
        )


def _single_images(results: Sequence[MethodResult]) -> tuple[Block, ...]:
    """Draw what each method gains over the stored statistics, and lay out its accuracy."""
    rows = [
        {"statistics": method_label(one.method), "order": one.order.replace("_", "-")}
        | {"gain": 100 * one.gain.mean, "low": 100 * one.gain.low, "high": 100 * one.gain.high}
        for one in results
        if one.gain and one.method != STORED
    ]
    figure = Figure(
        name="ways",
        title="Gain over the stored statistics",
        caption="Dot: mean of the seeds. Line: lowest to highest.",
        kind="dot_ranges",
        data=rows,
        options={"rows": "statistics", "x": "gain", "ends": ("low", "high"), "x_title": "points", "signed": True}
        | {"hue": "order", "order": [order.replace("_", "-") for order in ORDERS]},
    )
    return (Figures([figure]), _methods_table(results)) if rows else ()


def _methods_table(results: Sequence[MethodResult]) -> Table:
    def accuracy(order: str, method: str) -> Entry:
        one = next(one for one in results if (one.order, one.method) == (order, method))
        note = f"{signed_points(one.gain)} against stored" if one.gain and method != STORED else ""
        return Entry(text=percent_spread(one.accuracy), note=note)

    columns = {f"{capital(order.replace('_', ' '))}, one by one": partial(accuracy, order) for order in ORDERS}
    methods = dict.fromkeys(one.method for one in results)
    return Table.of(methods, {"Statistics": lambda method: capital(method_label(method)), **columns})


# What is claimed.


def _claims(
    record: Record, arms: Sequence[ArmResult], results: Sequence[MethodResult], default: Spread | None
) -> list[Claim]:
    chance, named = chance_of(record), {one.arm: one for one in arms}
    gated, plain = named.get(GATED), named.get(PLAIN)
    pair = {arm_label(one.arm): one.accuracy for one in (gated, plain) if one}
    pays_less = _pays_less(gated, plain)
    if all(accuracy and is_guessing(accuracy, chance) for accuracy in pair.values()):  # that one alone is, is a finding
        pays_less = unless_guessing(pays_less, chance, pair)
    judged = (
        _falsifier(gated, default, chance.share),
        _evaluated([one.gain for one in results if one.method == GATED_LAYERS and one.gain]),
        pays_less,
        _statistics_are_to_blame(plain),
        *(_costs_nothing(one) for one in results if one.method == GATE),
    )
    return [unless_guessing(item, chance, {"the default build": default}) for item in judged]


def _falsifier(gated: ArmResult | None, default: Spread | None, chance: float) -> Claim:
    claim = f"The gated layer loses at most {points(LIMIT, digits=0)} at batch size 1 (a larger drop falsifies it)."
    diverged = gated.diverged_at_step if gated else ()
    if gated is None or gated.drop is None:
        return judge(claim, False if diverged else None, "Every run diverged." if diverged else "It was not trained.")
    if default and default.mean < LIMIT + chance:
        reached = f"The default build itself reaches {percent(default.mean)}"
        return judge(claim, None, f"{reached}, too near chance to lose so much.")
    drop, within = gated.drop, gated.drop.high <= LIMIT
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


def _pays_less(gated: ArmResult | None, plain: ArmResult | None) -> Claim:
    return compare(
        "At batch size 1 the gated layer loses less than plain batch norm.",
        gated.accuracy if gated else None,
        plain.accuracy if plain else None,
        higher=True,
        what="validation accuracy",
        names=("with the gate", "without"),
        shown=percent,
        absent="Not both were trained to the end.",
    )


def _statistics_are_to_blame(plain: ArmResult | None) -> Claim:
    claim = "Plain batch norm fails in evaluation, by its running statistics and not by its weights."
    if plain is None or plain.accuracy is None or plain.recalibrated is None or plain.drop is None:
        return judge(claim, None, "It was not trained to the end.")
    won = plain.recalibrated.mean - plain.accuracy.mean
    found = f"win {points(won)} of them back" if won >= 0 else f"lose {points(won)} more"
    met = won > plain.drop.mean / 2 > 0
    return judge(claim, met, f"It {_lost(plain.drop)}; statistics measured again {found}.")


def _costs_nothing(one: MethodResult) -> Claim:
    order = one.order.replace("_", "-")
    claim = f"The gate costs the default build at most {points(SAFE)} on single images, {order}."
    if one.gain is None:
        return judge(claim, None, "The stream was not measured.")
    return judge(claim, one.gain.low >= -SAFE, f"{signed_points(one.gain)} against the stored statistics.")


# What is said in sentences.


def _lost(drop: Spread) -> str:
    """Say how much accuracy was lost, or won."""
    return f"{'loses' if drop.mean >= 0 else 'gains'} {points(drop.mean)}"


def _headline(record: Record, arms: Sequence[ArmResult], default: Spread | None) -> str:
    drops = {one.arm: one.drop for one in arms if one.drop}
    if GATED in [one.arm for one in arms if one.diverged_at_step and not one.accuracy]:
        return "At batch size 1 gated batch norm diverged"
    if GATED not in drops:
        return "No gated network has been trained at batch size 1 yet"
    if default and is_guessing(default, chance_of(record)):
        return f"The default build is no better than guessing ({percent(default.low)}), and has nothing to lose"
    beside = f", plain batch norm {_lost(drops[PLAIN])}" if PLAIN in drops else ""
    return f"At batch size 1 gated batch norm {_lost(drops[GATED])}{beside}"


def _lead(record: Record) -> str:
    config = record.config
    return (
        f"The same network ({config['network']}) trained for {counted(config['epochs'], 'epoch')} on "
        f"{data_label(record)}, in batches of {config['batch_size']} with rate {rate(config['lr'])}, and image by "
        f"image with rate {rate(config['lr'] / config['batch_size'])}; {seeds_label(len(config['seeds']))}."
    )


def _method(record: Record) -> list[str]:
    config = record.config
    return [
        f"{data_method(record)} A seed decides the initial weights and the order of the images, alike in every arm.",
        *training_method(record),
        "At batch size 1 the images come one by one in an order shuffled again for every epoch, with the learning rate "
        f"divided by {config['batch_size']}; the layers keep their defaults, momentum 0.1 of the running statistics "
        "included. Frozen batch norm has nothing to freeze in a new network: it is a learned weight and bias.",
        f"Single images: {config['stream_images']:,} of the validation images, predicted one by one by the default "
        "build in evaluation. Class-ordered: all of one class, then all of another. A method that follows the stream "
        "sees an image before it predicts it. Calibration, where a method needs one, is on training images.",
    ]


EXPERIMENT = Experiment(name="stream", config=StreamConfig, quick=QUICK, check=_check, work=_work, describe=describe)

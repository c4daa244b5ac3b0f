"""Train with and without normalization over learning rates, batch sizes and depths.

Question: at which learning rates does a network without normalization explode, and does batch norm bear larger ones
(Bjorck et al. 2018, arXiv 1806.02375)?

Expected (the article): at batch 64, rates 0.01, 0.05 and 0.1, the unnormalized network explodes at the higher ones and
the normalized one does not. How soon depends on depth and initialisation: ``--depth 6 12 18``. ``--largest-rate`` looks
for the border itself, by bisection over runs of 100 steps.

Cost: on two cores with bfloat16, about a minute for a network of six convolutions and an epoch of CIFAR-10, in
proportion for ``--train-images``; the search some half minute for every arm, depth, batch size and seed.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Any, TypeVar

from steadynorm.lab.configuration import (
    TrainingConfig,
    check_arms,
    check_experiment,
    check_lists,
    check_network,
    check_rates,
    check_split,
    check_training,
    settings_at,
)
from steadynorm.lab.data import first
from steadynorm.lab.describe import (
    PLAIN,
    Outcome,
    accuracy_entry,
    arm_cell,
    arm_label,
    arm_labels,
    batch_arm,
    class_count,
    data_label,
    data_method,
    expected,
    has_ended,
    networks_as_json,
    plain_arm,
    runs_at,
    seeds_note,
    training_method,
)
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.stability import SEARCH_STEPS, Bracket, bracket, chance_in_search, next_rate, tried_rates
from steadynorm.lab.training import network, train_networks
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.claims import judge, unless_guessing
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.numbers import NONE, number, percent, points, rate
from steadynorm.reporting.records import Cell, Factors, Record
from steadynorm.reporting.report import Claim, Claims, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import are_apart
from steadynorm.reporting.words import capital, counted, first_fitting, listing

__all__ = ["EXPERIMENT", "GridPoint", "RateLimit", "SweepConfig", "grid_points", "rate_limits"]

Pair = tuple[str | None, str | None]
"""Batch norm and no normalization, where they are among the arms."""
PointT = TypeVar("PointT", "GridPoint", "RateLimit")

SEARCH_EPOCHS = 2  # the second one shows whether the first has taught anything
SEARCH_VALIDATION = 500  # images; their accuracy decides nothing here
MANY = 12  # rows of a table that stands at the end of the page


@dataclass(frozen=True, kw_only=True)
class SweepConfig(TrainingConfig):
    """Train one network per normalization, learning rate, batch size, depth and seed, and show where training explodes.

    The defaults are the article's rates and batch size, on embedded data; --data cifar10 takes photographs.
    """

    arms: tuple[str, ...] = ("batch_norm", "none")
    """Normalizations to compare, as in steadynorm compare."""
    lr: tuple[float, ...] = (0.01, 0.05, 0.1)
    """Learning rates of SGD."""
    batch_size: tuple[int, ...] = (64,)
    """Numbers of images that are normalized together and make a step."""
    depth: tuple[int, ...] = (6,)
    """Numbers of convolutions of the cnn."""
    epochs: int = 5
    """Passes over the training images."""
    milestones: tuple[int, ...] = (4,)
    """Epochs after which the learning rate is divided by ten."""
    largest_rate: bool = False
    """Also look for the largest rate that trains, by bisection to within a factor of 1.5."""


QUICK: dict[str, Any] = {
    "lr": (0.01, 0.1, 1.0),
    "widths": (16, 32, 64),
    "epochs": 3,
    "milestones": (2,),
    "largest_rate": True,
}


def _work(task: Task[SweepConfig]) -> None:
    """Train the grid, then search."""
    config = task.config
    settings = settings_at(config, task.record, depth=config.depth[0], batch_size=config.batch_size[0])
    networks = [
        network(arm=arm, seed=seed, lr=rate, epochs=config.epochs, batch_size=batch_size, depth=depth)
        for seed, depth, batch_size, arm, rate in itertools.product(
            config.seeds, config.depth, config.batch_size, config.arms, config.lr
        )
    ]
    train_networks(task, networks, settings)
    if config.largest_rate:
        _search(task)


def _search(task: Task[SweepConfig]) -> None:
    """Bisect for every arm, depth, batch size and seed, all of a batch size side by side.

    What was tried before a stop is known again.
    """
    config = task.config
    for batch_size in config.batch_size:
        settings = settings_at(config, task.record, depth=config.depth[0], batch_size=batch_size)
        classes, chance = len(task.dataset.classes), chance_in_search(task.record, batch_size)
        few = replace(
            task.dataset,
            train=first(task.dataset.train, SEARCH_STEPS * batch_size),
            validation=first(task.dataset.validation, SEARCH_VALIDATION),
        )
        tried: dict[tuple[int, int, str], dict[float, bool]] = {
            place: {} for place in itertools.product(config.seeds, config.depth, config.arms)
        }
        while networks := {
            place: _searching(*place, batch_size, rate)
            for place, known in tried.items()
            if (rate := next_rate(known)) is not None
        }:
            found = train_networks(task, list(networks.values()), replace(settings, milestones=()), dataset=few)
            for place, run in zip(networks, found, strict=True):
                tried[place] |= tried_rates([run], classes=classes, chance=chance)


def _searching(seed: int, depth: int, arm: str, batch_size: int, rate: float) -> Factors:
    """Say how a rate is tried."""
    return network(
        arm=arm,
        seed=seed,
        lr=rate,
        epochs=SEARCH_EPOCHS,
        purpose="stability",
        batch_size=batch_size,
        depth=depth,
    )


def _check(config: SweepConfig) -> None:
    check_arms(config.arms)
    check_lists(config, ("arms", "lr", "batch_size", "depth"))
    check_experiment(config)
    check_split(*config.batch_size)
    check_rates("--lr", config.lr)
    check_training(config)
    if min(config.batch_size) < 2:
        raise UserError(f"--batch-size: must be at least 2, got {min(config.batch_size)}.")
    for depth in config.depth:
        check_network(config.network, depth=depth, widths=config.widths)


def describe(record: Record) -> Report:
    """Say what a sweep found."""
    grid, limits = grid_points(record), rate_limits(record)
    brackets = [one for limit in limits for one in limit.brackets]
    is_searched = len(brackets) == len(limits) * len(record.config["seeds"]) and all(one.is_close for one in brackets)
    table = Table.of(grid, {"Normalization": lambda point: arm_cell(record, point.arm), **COLUMNS})
    shown = (table, Text(seeds_note(record)))
    is_long = len(grid) > MANY
    searched = (Figures(list(_limit_figures(record, limits))), _limit_table(record, limits)) if limits else ()
    return Report(
        headline=_headline(record, grid),
        lead=_lead(record),
        table=Table.of(grid, {"Normalization": lambda point: point.arm, **COLUMNS}),
        sections=(
            Section(title="Result", blocks=(Figures(list(_accuracy_figures(record))), *(() if is_long else shown))),
            expected(Claims(_claims(record, grid, limits))),
            Section(title="The largest rate that trains", short="Largest rate", blocks=searched),
            Section(title="Every normalization and rate", short="Table", blocks=shown if is_long else ()),
        ),
        method=_method(record),
        finished=has_ended(record) and is_searched,
        findings={
            "places": [asdict(point) for point in grid],
            "largest_rates": [asdict(limit) | {"mean": limit.mean} for limit in limits],
            "runs": networks_as_json(record),
        },
    )


@dataclass(frozen=True, kw_only=True)
class GridPoint(Outcome):
    """One normalization at one depth, batch size and learning rate; accuracy is that after the last epoch."""

    arm: str
    depth: int
    batch_size: int
    lr: float
    guessing: int
    """Runs that finished no better than chance: mean training loss of the last epoch not below ln(classes), or a
    validation accuracy not surely above that of guessing."""


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """Where the largest rate that trains lies, for one normalization, depth and batch size; a bracket for each seed."""

    arm: str
    depth: int
    batch_size: int
    brackets: tuple[Bracket, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """The largest rate that trained, of every seed whose search is over."""
        return tuple(one.trains for one in self.brackets if one.is_close and one.trains is not None)

    @property
    def mean(self) -> float:
        """Geometric mean of the rates, as they are compared by their ratios; NaN where there are none."""
        return statistics.geometric_mean(self.rates) if self.rates else math.nan


def grid_points(record: Record) -> list[GridPoint]:
    """Summarise every point of the grid, in the order of the configuration."""
    config, found = record.config, []
    factors = {"depth": config["depth"], "batch_size": config["batch_size"], "arm": config["arms"], "lr": config["lr"]}
    for point, runs in runs_at(record, **factors):
        guessing = sum(_is_guessing(record, run) for run in runs if run.status == "finished")
        found.append(GridPoint.of(runs, lambda run: run.last("val_accuracy"), **point, guessing=guessing))
    return found


def _is_guessing(record: Record, run: Cell) -> bool:
    learned = run.last("train_loss") < math.log(class_count(record))
    return not (learned and chance_of(record).is_beaten(run.last("val_accuracy")))


def rate_limits(record: Record) -> list[RateLimit]:
    """Collect the searches; none where none was asked for."""
    config, found = record.config, []
    if not config["largest_rate"]:
        return []
    factors = {"depth": config["depth"], "batch_size": config["batch_size"], "arm": config["arms"]}
    for point, runs in runs_at(record, "stability", **factors):
        classes, chance = class_count(record), chance_in_search(record, point["batch_size"])
        seeds = [[run for run in runs if run.factors["seed"] == seed] for seed in config["seeds"]]
        tried = [tried_rates(seed, classes=classes, chance=chance) for seed in seeds]
        found.append(RateLimit(**point, brackets=tuple(bracket(one) for one in tried if one)))
    return found


# What the tables and figures show.


def _ending(point: GridPoint) -> Entry:
    """Say what became of the networks of a point."""
    words = [point.exploded] if point.exploded else []
    if point.guessing:
        words.append("no better than chance" if point.seeds == 1 else f"{point.guessing} of {point.seeds} at chance")
    if point.waiting:
        words.append("waiting" if point.waiting == point.seeds else f"{point.waiting} of {point.seeds} waiting")
    bad = point.exploded or point.guessing
    return Entry(text=", ".join(words) or ("trained" if point.seeds else "waiting"), tone="bad" if bad else "")


COLUMNS: Mapping[str, Callable[[GridPoint], Entry | str]] = {
    "Depth": lambda point: str(point.depth),
    "Batch": lambda point: str(point.batch_size),
    "Rate": lambda point: rate(point.lr),
    "Validation accuracy": lambda point: accuracy_entry(point.accuracy),
    "Outcome": _ending,
}


def _limit_table(record: Record, limits: Sequence[RateLimit]) -> Table:
    return Table.of(
        limits,
        {
            "Normalization": lambda limit: arm_cell(record, limit.arm),
            "Convolutions": lambda limit: str(limit.depth),
            "Batch": lambda limit: str(limit.batch_size),
            "Largest rate that trains": lambda limit: number(limit.mean),
            "Each seed: trains, fails": lambda limit: (
                "; ".join(f"{number(one.trains)}, {number(one.fails)}" for one in limit.brackets) or NONE
            ),
        },
    )


def _accuracy_figures(record: Record) -> Iterator[Figure]:
    """Draw accuracy over the learning rate, for every depth and batch size at which a run has ended."""
    config = record.config
    axes = {"x": "learning rate", "y": "accuracy", "hue": "arm", "order": arm_labels(record)}
    for point, runs in runs_at(record, depth=config["depth"], batch_size=config["batch_size"]):
        depth, size = point.values()
        dots = [_dot(run, run.last("val_accuracy")) for run in runs if run.status == "finished"]
        crosses = [_dot(run, math.nan) for run in runs if run.status == "diverged"]
        rates = sorted({dot["learning rate"] for dot in dots + crosses})
        crossed = " A cross at the foot: the loss of a run was no longer finite." if crosses else ""
        if crosses or any(math.isfinite(dot["accuracy"]) for dot in dots):
            yield Figure(
                name=f"accuracy_depth{depth}_batch{size}",
                title=f"Validation accuracy, {depth} convolutions, batch {size}",
                caption=f"After the last epoch. Line: mean of the seeds. Band: lowest to highest.{crossed}",
                kind="lines",
                data=dots + crosses,
                options=axes | {"x_log": True, "x_values": rates, "percent": True, "dots": True},
                marks={"crosses": crosses},
            )


def _dot(run: Cell, accuracy: float) -> dict[str, Any]:
    return {"arm": arm_label(run.factors["arm"]), "learning rate": run.factors["lr"], "accuracy": accuracy}


def _limit_figures(record: Record, limits: Sequence[RateLimit]) -> Iterator[Figure]:
    """Draw the largest rate that trains over the depth, for every batch size; nothing before one is known."""
    axes = {"x": "convolutions", "y": "rate", "band": ("low", "high"), "hue": "arm", "order": arm_labels(record)}
    for size in record.config["batch_size"]:
        here = [limit for limit in limits if limit.batch_size == size and limit.rates]
        rows = [
            {"arm": arm_label(one.arm), "convolutions": one.depth, "rate": one.mean}
            | {"low": min(one.rates), "high": max(one.rates)}
            for one in here
        ]
        rings = [row | {"rate": lr} for row, one in zip(rows, here, strict=True) for lr in one.rates]
        if rows:
            yield Figure(
                name=f"largest_rate_batch{size}",
                title=f"Largest learning rate that trains, batch {size}",
                caption="By bisection, to within a factor of 1.5. Rings: seeds. Line: their geometric mean.",
                kind="lines",
                data=rows,
                options=axes | {"x_values": sorted({one.depth for one in here}), "dots": True},
                marks={"rings": rings},
            )


# What is claimed.


def _claims(record: Record, grid: Sequence[GridPoint], limits: Sequence[RateLimit]) -> list[Claim]:
    """Judge the article's expectation, Bjorck's, and which arm is ahead at its best rate.

    The first and the last need arms that have learned something at their best rate; the second has a test of its own.
    """
    pair = batch_arm(record.config["arms"]), plain_arm(record.config["arms"])
    best, chance = _best(grid), chance_of(record)
    own = {arm: [point for point in best if point.arm == arm] for arm in pair if arm}
    networks = {arm_label(arm): max(points, key=_accuracy).accuracy for arm, points in own.items() if points}
    return [
        unless_guessing(_only_plain_explodes(grid, pair), chance, networks),
        _limit_is_larger(limits, pair),
        unless_guessing(_best_is_ahead(best, pair), chance, networks),
    ]


def _only_plain_explodes(grid: Sequence[GridPoint], pair: Pair) -> Claim:
    claim = "Without normalization the higher rates explode, with batch norm none does."
    batch, plain = ([point for point in grid if point.arm == arm] for arm in pair)
    if not (batch and plain) or any(point.waiting or not point.seeds for point in (*batch, *plain)):
        return judge(claim, None, "Not all of these networks have ended.")
    lost = [sum(len(point.exploded_at_step) for point in points) for points in (batch, plain)]
    seeds = [sum(point.seeds for point in points) for points in (batch, plain)]
    measured = f"Exploded: {lost[1]} of {seeds[1]} networks without, {lost[0]} of {seeds[0]} with batch norm."
    return judge(claim, lost[1] > 0 and lost[0] == 0, measured)


def _limit_is_larger(limits: Sequence[RateLimit], pair: Pair) -> Claim:
    found = {
        f"{where}: {number(batch.mean)} with, {number(plain.mean)} without": min(batch.rates) > max(plain.rates)
        for where, batch, plain in _pairs([limit for limit in limits if limit.rates], pair)
    }
    claim = "The largest rate that trains is larger with batch norm."
    return _judge_all(claim, found, absent="No search is over: --largest-rate.")


def _best_is_ahead(best: Sequence[GridPoint], pair: Pair) -> Claim:
    found = {}
    for where, batch, plain in _pairs(best, pair):
        mine, its = _accuracy(batch), _accuracy(plain)
        values = f"{percent(mine)} at {rate(batch.lr)} with, {percent(its)} at {rate(plain.lr)} without"
        is_ahead = mine > its and are_apart(batch.accuracy, plain.accuracy)
        found[f"{where}: {values} ({points(mine - its)})"] = is_ahead
    return _judge_all("Each at its own best rate, batch norm is ahead.", found, absent="No pair of networks has ended.")


def _judge_all(claim: str, found: Mapping[str, bool], *, absent: str) -> Claim:
    """Judge a claim that has to hold at every depth and batch size."""
    return judge(claim, all(found.values()) if found else None, f"{'; '.join(found)}." if found else absent)


def _pairs(found: Sequence[PointT], pair: Pair) -> Iterator[tuple[str, PointT, PointT]]:
    """Give, for every depth and batch size, its name, batch norm and no normalization, where both are known."""
    named = {(one.arm, one.depth, one.batch_size): one for one in found}
    for (arm, depth, size), one in named.items():
        other = named.get((pair[1] or "", depth, size))
        if arm == pair[0] and other:
            yield f"{depth} convolutions, batch {size}", one, other


def _best(grid: Sequence[GridPoint]) -> list[GridPoint]:
    """Give, for every depth, batch size and normalization, the point of the highest mean accuracy."""
    known = [point for point in grid if point.accuracy]
    groups = itertools.groupby(known, attrgetter("depth", "batch_size", "arm"))
    return [max(points, key=_accuracy) for _, points in groups]


def _accuracy(point: GridPoint) -> float:
    return point.accuracy.mean if point.accuracy else math.nan


# What is said in sentences.


def _headline(record: Record, grid: Sequence[GridPoint]) -> str:
    """Say from which rate on training explodes, and with which normalizations it does not."""
    ended = [point for point in grid if point.accuracy or point.exploded]
    if not ended:
        return "No network has ended yet"
    exploded, highest = [point for point in ended if point.exploded], rate(max(point.lr for point in ended))
    if all(point.guessing and not point.exploded for point in ended):
        return f"No network is better than guessing, up to rate {highest}"
    if not exploded:
        return f"Nothing explodes up to rate {highest} on {data_label(record)}"
    least = min(exploded, key=lambda point: (point.lr, point.depth))
    claim = f"Training explodes from rate {rate(least.lr)} on {_with(least.arm)}"
    lost = {point.arm for point in exploded}
    steady = [_with(arm) for arm in record.config["arms"] if arm not in lost]
    if not steady:
        return claim
    return first_fitting(f"{claim}, nowhere {listing(steady)}", f"{claim}, nowhere with {len(steady)} others", claim)


def _with(arm: str) -> str:
    return "without normalization" if arm == PLAIN else f"with {arm_label(arm)}"


def _lead(record: Record) -> str:
    config = record.config
    names = {"arms": "normalization", "lr": "learning rate", "batch_size": "batch size", "depth": "depth"}
    grid = listing([counted(len(config[key]), name) for key, name in names.items()])
    epochs, seeds = counted(config["epochs"], "epoch"), counted(len(config["seeds"]), "seed")
    return f"{capital(grid)}, {seeds} each: {epochs} on {data_label(record)} for every network."


def _method(record: Record) -> list[str]:
    search = (
        "The largest rate that trains is searched in runs of two epochs of 50 steps at a constant rate: a rate trains "
        "if the mean loss of the second epoch is below ln(classes), that of guessing, and its training accuracy surely "
        "above guessing's. Rates go by factors of 4 from 0.1 until one trains and one does not, then by the geometric "
        "middle; above one that fails all are taken to fail."
    )
    return [
        f"{data_method(record)} A seed decides the initial weights and the order of the images, alike in every arm and "
        "at every rate.",
        *training_method(record),
        "A run whose loss stops being finite is stopped and counted as exploded, at that step.",
        *([search] if record.config["largest_rate"] else []),
    ]


EXPERIMENT = Experiment(name="sweep", config=SweepConfig, quick=QUICK, check=_check, work=_work, describe=describe)

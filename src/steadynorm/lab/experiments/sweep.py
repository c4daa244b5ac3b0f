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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import methodcaller
from typing import Any, TypeVar

from steadynorm.lab.configuration import TrainingConfig, check_arms, check_experiment, check_split, settings_of
from steadynorm.lab.data import some
from steadynorm.lab.describe.arms import Arm, arms_at, final, if_finished, points_of
from steadynorm.lab.describe.claims import expected
from steadynorm.lab.describe.figures import arm_figure
from steadynorm.lab.describe.method import method_of, sentences
from steadynorm.lab.describe.names import PLAIN, arm_label, batch_arm, data_label, pair
from steadynorm.lab.describe.networks import has_ended, networks_as_json
from steadynorm.lab.describe.tables import accuracy_column, arm_cell, seeds_note
from steadynorm.lab.experiment import Experiment, Task
from steadynorm.lab.stability import SEARCH_STEPS, Bracket, bracket, chance_in_search, next_rate, tried_rates
from steadynorm.lab.training import network, train_networks
from steadynorm.reporting.chance import chance_of, loss_of_guessing
from steadynorm.reporting.claims import judge, too_few, unless_guessing
from steadynorm.reporting.numbers import NONE, number, percent, points, rate
from steadynorm.reporting.records import Cell, Record, file_word
from steadynorm.reporting.report import Claim, Claims, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.seeds import are_apart
from steadynorm.reporting.words import first_fitting, listing

__all__ = ["EXPERIMENT", "RateLimit", "SweepConfig", "grid_points", "rate_limits"]

SEARCH_EPOCHS = 2  # the second epoch shows whether the first taught anything
SEARCH_VALIDATION = 500  # validation images; their accuracy decides nothing here
MANY = 12  # least rows of a table that moves to the end of the page


@dataclass(frozen=True, kw_only=True)
class SweepConfig(TrainingConfig):
    """Train one network per normalization, learning rate, batch size, depth and seed, and show where training explodes.

    The defaults are the article's rates and batch size, on embedded data; --data takes CIFAR-10 or your own images.
    """

    arms: tuple[str, ...] = ("batch_norm", "none")
    """Normalizations to compare, as in steadynorm compare."""
    lr: tuple[float, ...] = (0.01, 0.05, 0.1)
    """Learning rates."""
    batch_size: tuple[int, ...] = (64,)
    """Images in a step, which are normalized together."""
    depth: tuple[int, ...] = (6,)
    """Convolutions of the cnn."""
    epochs: int = 5
    milestones: tuple[int, ...] = (4,)
    largest_rate: bool = False
    """Also look for the largest rate that trains, by bisection to within a factor of 1.5."""


QUICK: dict[str, Any] = {"lr": (0.01, 0.1, 1.0), "batch_size": (16,), "widths": (8, 16, 32)}
QUICK |= {"epochs": 6, "milestones": (5,)}


def _work(task: Task[SweepConfig]) -> None:
    """Train the grid, then search."""
    config = task.config
    grid = points_of(seed=config.seeds, depth=config.depth, batch_size=config.batch_size, arm=config.arms, lr=config.lr)
    networks = [network(**point, epochs=config.epochs) for point in grid]
    train_networks(task, networks, settings_of(config, task.record))
    if config.largest_rate:
        _search(task)


def _search(task: Task[SweepConfig]) -> None:
    """Bisect for every arm, depth, batch size and seed, all of a batch size side by side.

    Rates tried before an interruption are not tried again.
    """
    config = task.config
    settings = settings_of(replace(config, schedule="step", milestones=()), task.record)
    for batch_size in config.batch_size:
        guessing, chance = loss_of_guessing(task.record), chance_in_search(task.record, batch_size)
        few = replace(
            task.dataset,
            train=some(task.dataset.train, SEARCH_STEPS * batch_size),
            validation=some(task.dataset.validation, SEARCH_VALIDATION),
        )
        places = [tuple(one.items()) for one in points_of(seed=config.seeds, depth=config.depth, arm=config.arms)]
        tried: dict[Any, dict[float, bool]] = {place: {} for place in places}
        how: dict[str, Any] = {"epochs": SEARCH_EPOCHS, "purpose": "stability", "batch_size": batch_size}
        while networks := {
            place: network(**dict(place), lr=rate, **how)
            for place, known in tried.items()
            if (rate := next_rate(known)) is not None
        }:
            found = train_networks(task, list(networks.values()), settings, dataset=few)
            for place, run in zip(networks, found, strict=True):
                tried[place] |= tried_rates([run], guessing=guessing, chance=chance)


def _check(config: SweepConfig) -> None:
    check_arms(config.arms)
    check_experiment(config, ("arms", "lr", "batch_size", "depth"), least={"batch_size": 2})
    check_split(*config.batch_size)


def describe(record: Record) -> Report:
    """Describe the results of a sweep."""
    grid, limits = grid_points(record), rate_limits(record)
    brackets = [one for limit in limits for one in limit.brackets]
    is_searched = len(brackets) == len(limits) * len(record.config["seeds"]) and all(one.is_close for one in brackets)
    shown = (
        Table.of(grid, {"Normalization": lambda arm: arm_cell(record, arm.arm), **COLUMNS}),
        Text(seeds_note(record)),
    )
    is_long = len(grid) > MANY
    searched = (Figures(_limit_figures(record, limits)), _limit_table(record, limits)) if limits else ()
    return Report(
        headline=_headline(record, grid),
        lead=sentences(record, LEAD),
        table=Table.of(grid, {"Normalization": lambda arm: file_word(arm.arm), **COLUMNS}),
        sections=(
            Section(title="Result", blocks=(Figures(_accuracy_figures(record)), *(() if is_long else shown))),
            expected(Claims(_claims(record, grid, limits))),
            Section(title="The largest rate that trains", short="Largest rate", blocks=searched),
            Section(title="Every normalization and rate", short="Table", blocks=shown if is_long else ()),
        ),
        method=method_of(record, METHOD, search=" ".join(SEARCH.split()) if record.config["largest_rate"] else ""),
        finished=has_ended(record) and is_searched,
        findings={
            "places": [arm.as_json() | {"guessing": _guessing(arm)} for arm in grid],
            "largest_rates": [{**limit.at, "brackets": limit.brackets, "mean": limit.mean} for limit in limits],
            "runs": networks_as_json(record),
        },
    )


def grid_points(record: Record) -> list[Arm]:
    """Reduce the networks at every point of the grid; one guesses that finished no better than chance.

    Then its mean training loss of the last epoch is not below that of guessing by the classes' shares, or its
    validation accuracy is not surely above that of guessing.
    """

    def guesses(run: Cell) -> float:
        learned = run.last("train_loss") < loss_of_guessing(record)
        return float(not (learned and chance_of(record).is_beaten(run.last("val_accuracy"))))

    quantities = {"accuracy": final("val_accuracy"), "guessing": if_finished(guesses)}
    factors = ("depth", "batch_size", "arms", "lr")
    return arms_at(record, quantities, **{name.removesuffix("s"): record.config[name] for name in factors})


def _guessing(arm: Arm) -> int:
    return arm.values["guessing"].count(1)


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """Brackets of the largest rate that trains, for one normalization, depth and batch size; one for each seed."""

    arm: str
    at: Mapping[str, Any]
    brackets: tuple[Bracket, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """The largest rate that trained, of every seed whose search is over."""
        return tuple(one.trains for one in self.brackets if one.is_close and one.trains is not None)

    @property
    def mean(self) -> float:
        """Geometric mean of the rates, because ratios are compared; NaN without rates."""
        return statistics.geometric_mean(self.rates) if self.rates else math.nan


def rate_limits(record: Record) -> list[RateLimit]:
    """Collect the searches; empty if none was requested."""
    config, found = record.config, []
    for point in points_of(depth=config["depth"], batch_size=config["batch_size"], arm=config["arms"]):
        guessing, chance = loss_of_guessing(record), chance_in_search(record, point["batch_size"])
        runs = [record.select(purpose="stability", **point, seed=seed) for seed in config["seeds"]]
        tried = [tried_rates(one, guessing=guessing, chance=chance) for one in runs]
        brackets = tuple(bracket(one) for one in tried if one)
        found.append(RateLimit(arm=point["arm"], at=point, brackets=brackets))
    return found if config["largest_rate"] else []


def _ending(arm: Arm) -> Entry:
    """Describe how the networks of a point ended."""
    guessing, seeds = _guessing(arm), arm.seeds
    words = [
        arm.exploded,
        "" if not guessing else "not surely above chance" if seeds == 1 else f"{guessing} of {seeds} at chance",
        "" if not arm.waiting else "waiting" if arm.waiting == seeds else f"{arm.waiting} of {seeds} waiting",
    ]
    text = ", ".join(filter(None, words)) or ("trained" if seeds else "waiting")
    return Entry(text=text, tone="bad" if arm.lost or guessing else "")


COLUMNS: Mapping[str, Callable[[Arm], Entry | str]] = {
    "Depth": lambda arm: str(arm.at["depth"]),
    "Batch": lambda arm: str(arm.at["batch_size"]),
    "Rate": lambda arm: rate(arm.at["lr"]),
    "Validation accuracy": accuracy_column("accuracy", tone=""),
    "Outcome": _ending,
}


def _limit_table(record: Record, limits: Sequence[RateLimit]) -> Table:
    columns: Mapping[str, Callable[[RateLimit], Entry | str]] = {
        "Normalization": lambda limit: arm_cell(record, limit.arm),
        "Convolutions": lambda limit: str(limit.at["depth"]),
        "Batch": lambda limit: str(limit.at["batch_size"]),
        "Largest rate that trains": lambda limit: number(limit.mean),
        "Each seed: trains, fails": lambda limit: (
            "; ".join(f"{number(one.trains)}, {number(one.fails)}" for one in limit.brackets) or NONE
        ),
    }
    return Table.of(limits, columns)


def _accuracy_figures(record: Record) -> list[Figure]:
    """Draw accuracy over the learning rate, for every depth and batch size at which a run has ended."""
    found: list[Figure] = []
    axes: dict[str, Any] = {"x": "learning rate", "x_log": True, "y": "accuracy", "percent": True, "dots": True}
    for point in points_of(depth=record.config["depth"], batch_size=record.config["batch_size"]):
        runs = record.select(purpose=None, **point)
        dots = [_dot(run, run.last("val_accuracy")) for run in runs if run.status == "finished"]
        crosses = [_dot(run, math.nan) for run in runs if run.status == "diverged"]
        crossed = " A cross at the foot: the loss of a run was no longer finite." if crosses else ""
        is_drawn = crosses or any(math.isfinite(dot["accuracy"]) for dot in dots)
        found += arm_figure(
            record,
            "lines",
            dots + crosses if is_drawn else [],
            name=f"accuracy_depth{point['depth']}_batch{point['batch_size']}",
            title=f"Validation accuracy, {point['depth']} convolutions, batch {point['batch_size']}",
            caption=f"After the last epoch. Line: mean of the seeds. Band: lowest to highest.{crossed}",
            marks={"crosses": crosses},
            **axes,
            x_values=sorted({dot["learning rate"] for dot in dots + crosses}),
        )
    return found


def _dot(run: Cell, accuracy: float) -> dict[str, Any]:
    return {"arm": run.factors["arm"], "learning rate": run.factors["lr"], "accuracy": accuracy}


def _limit_figures(record: Record, limits: Sequence[RateLimit]) -> list[Figure]:
    """Draw the largest rate that trains over the depth, for every batch size; nothing before a rate is known."""
    found: list[Figure] = []
    axes: dict[str, Any] = {"x": "convolutions", "y": "rate", "band": ("low", "high"), "dots": True}
    for size in record.config["batch_size"]:
        here = [limit for limit in limits if limit.at["batch_size"] == size and limit.rates]
        rows = [
            {"arm": one.arm, "convolutions": one.at["depth"], "rate": one.mean}
            | {"low": min(one.rates), "high": max(one.rates)}
            for one in here
        ]
        found += arm_figure(
            record,
            "lines",
            rows,
            name=f"largest_rate_batch{size}",
            title=f"Largest learning rate that trains, batch {size}",
            caption="By bisection, to within a factor of 1.5. Rings: seeds. Line: their geometric mean.",
            marks={"rings": [row | {"rate": lr} for row, one in zip(rows, here, strict=True) for lr in one.rates]},
            **axes,
            x_values=sorted({one.at["depth"] for one in here}),
        )
    return found


ACCURACY = methodcaller("mean", "accuracy")
Found = TypeVar("Found", Arm, RateLimit)


def _claims(record: Record, grid: Sequence[Arm], limits: Sequence[RateLimit]) -> list[Claim]:
    """Judge the article's expectation, Bjorck's, and which arm is ahead at its best rate.

    The first and the last need arms that have learned something at their best rate; the second has a test of its own.
    """
    both = {batch_arm(record.config["arms"]), PLAIN}
    own = [arm for arm in grid if arm.arm in both]
    groups = itertools.groupby((arm for arm in own if arm["accuracy"]), lambda arm: {**arm.at, "lr": None})
    best = [max(arms, key=ACCURACY) for _, arms in groups]  # of every depth, batch size and normalization
    tops = pair({name: max(arms, key=ACCURACY) for name, arms in _by_arm(best).items()})
    networks = {arm.label: arm["accuracy"] for arm in tops if arm}
    known = _pairs([limit for limit in limits if limit.rates and limit.arm in both])
    larger = {
        f"{where}: {number(batch.mean)} with, {number(plain.mean)} without": min(batch.rates) > max(plain.rates)
        for where, batch, plain in known
    }
    claim = "The largest rate that trains is larger with batch norm."
    return [
        unless_guessing(_only_plain_explodes(own), chance_of(record), networks),
        _everywhere(claim, larger, absent="No search is over: --largest-rate."),
        unless_guessing(_best_is_ahead(best), chance_of(record), networks),
    ]


def _only_plain_explodes(grid: Sequence[Arm]) -> Claim:
    claim = "Without normalization the higher rates explode, with batch norm none does."
    batch, plain = pair(_by_arm(grid))
    if not (batch and plain) or any(arm.waiting or not arm.seeds for arm in (*batch, *plain)):
        return judge(claim, None, "Not all of these networks have ended.")
    with_norm, without = (sum(len(arm.diverged_at_step) for arm in arms) for arms in (batch, plain))
    of_batch, of_plain = (sum(arm.seeds for arm in arms) for arms in (batch, plain))
    measured = f"Exploded: {without} of {of_plain} networks without, {with_norm} of {of_batch} with batch norm."
    return judge(claim, without > 0 == with_norm, measured)


def _best_is_ahead(best: Sequence[Arm]) -> Claim:
    found = {}
    for where, batch, plain in _pairs(best):
        mine, its = batch.mean("accuracy"), plain.mean("accuracy")
        values = f"{percent(mine)} at {rate(batch.at['lr'])} with, {percent(its)} at {rate(plain.at['lr'])} without"
        is_ahead = mine > its and are_apart(batch["accuracy"], plain["accuracy"])
        found[f"{where}: {values} ({points(mine - its)})"] = is_ahead
    return _everywhere(
        "Each at its own best rate, batch norm is ahead.", found, absent="No pair of networks has ended."
    )


def _everywhere(claim: str, found: Mapping[str, bool], *, absent: str) -> Claim:
    """Judge a claim that has to hold at every depth and batch size."""
    return judge(claim, all(found.values()) if found else None, f"{'; '.join(found)}." if found else absent)


def _by_arm(found: Iterable[Found]) -> dict[str, list[Found]]:
    arms: dict[str, list[Found]] = {}
    for one in found:
        arms.setdefault(one.arm, []).append(one)
    return arms


def _pairs(found: Iterable[Found]) -> Iterator[tuple[str, Found, Found]]:
    """Return, for every depth and batch size with both arms, its name, batch norm and no normalization."""
    batch, plain = pair(_by_arm(found))
    for one, other in itertools.product(batch or (), plain or ()):
        depth, size = one.at["depth"], one.at["batch_size"]
        if (depth, size) == (other.at["depth"], other.at["batch_size"]):
            yield f"{depth} convolutions, batch {size}", one, other


def _headline(record: Record, grid: Sequence[Arm]) -> str:
    """Describe from which rate on training explodes, and with which normalizations it does not."""
    ended = [arm for arm in grid if arm["accuracy"] or arm.lost]
    if not ended:
        return "No network has ended yet"
    exploded, highest = [arm for arm in ended if arm.lost], rate(max(arm.at["lr"] for arm in ended))
    if all(_guessing(arm) and not arm.lost for arm in ended):
        return too_few(chance_of(record)) or f"No network is surely better than guessing, up to rate {highest}"
    if not exploded:
        claim = f"Nothing explodes up to rate {highest}"
        return first_fitting(f"{claim} on {data_label(record)}", claim)
    least = min(exploded, key=lambda arm: (arm.at["lr"], arm.at["depth"]))
    claim = f"Training explodes from rate {rate(least.at['lr'])} on {_with(least.arm)}"
    steady = [_with(arm) for arm in record.config["arms"] if arm not in [one.arm for one in exploded]]
    if not steady:
        return claim
    return first_fitting(f"{claim}, nowhere {listing(steady)}", f"{claim}, nowhere with {len(steady)} others", claim)


def _with(arm: str) -> str:
    return "without normalization" if arm == PLAIN else f"with {arm_label(arm)}"


LEAD = """
{arms_count}, {lr_count}, {batch_size_count} and {depth_count}, {seeds_count} each: {epochs} on {data} for every
network.
"""
METHOD = """
A run whose loss stops being finite is stopped and counted as exploded, at that step.

{search}
"""
SEARCH = """
The largest rate that trains is searched in runs of two epochs of up to 50 steps at a constant rate: a rate trains if
the mean loss of the second epoch is below that of guessing by the classes' shares, and its training accuracy surely
above guessing's.
Rates go by factors of 4 from 0.1 until one trains and one does not, then by the geometric middle; above one that fails
all are taken to fail.
"""

EXPERIMENT = Experiment(name="sweep", config=SweepConfig, quick=QUICK, check=_check, work=_work, describe=describe)

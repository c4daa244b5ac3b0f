"""What was measured in each place of a sweep: accuracy, explosions, and the largest rate that trains."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from steadynorm.lab.analysis import Spread, spread
from steadynorm.lab.chance import chance_of
from steadynorm.lab.records import Record, RunRecord
from steadynorm.lab.report.method import class_count
from steadynorm.lab.stability import Bracket, bracket, chance_in_search, tried_rates

__all__ = ["Border", "Place", "borders", "geometric_mean", "is_finished", "places"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """One normalization at one depth, batch size and learning rate; spreads are over its seeds."""

    arm: str
    depth: int
    batch_size: int
    lr: float
    seeds: int
    """Planned runs."""
    accuracy: Spread | None
    """On the validation images after the last epoch, of the runs that finished."""
    exploded_at_step: tuple[int, ...]
    """Steps at which the loss was no longer finite, one for each run that exploded."""
    guessing: int
    """Runs that finished no better than chance: mean training loss of the last epoch not below ln(classes), or a
    validation accuracy not surely above that of guessing."""
    waiting: int
    """Runs that have not ended."""


@dataclass(frozen=True, kw_only=True)
class Border:
    """Where the largest rate that trains lies, for one normalization, depth and batch size; a bracket for each seed."""

    arm: str
    depth: int
    batch_size: int
    brackets: tuple[Bracket, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """The largest rate that trained, of every seed whose search is over."""
        return tuple(one.trains for one in self.brackets if one.is_close and one.trains is not None)


def places(record: Record) -> list[Place]:
    """Summarise every place of the grid, in the order of the configuration."""
    config = record.config
    return [
        _place(record, depth, batch_size, str(arm), float(rate))
        for depth, batch_size, arm, rate in itertools.product(
            config["depth"], config["batch_size"], config["arms"], config["lr"]
        )
    ]


def borders(record: Record) -> list[Border]:
    """Collect the searches; none where none was asked for."""
    config = record.config
    if not config["largest_rate"]:
        return []
    return [
        Border(arm=str(arm), depth=depth, batch_size=size, brackets=tuple(_brackets(record, str(arm), depth, size)))
        for depth, size, arm in itertools.product(config["depth"], config["batch_size"], config["arms"])
    ]


def is_finished(record: Record) -> bool:
    """Whether the grid is trained and every search is over."""
    ended = bool(record.runs) and all(run.status in ("finished", "diverged") for run in record.runs)
    seeds = len(record.config["seeds"])
    searched = (border.brackets for border in borders(record))
    return ended and all(len(found) == seeds and all(one.is_close for one in found) for found in searched)


def geometric_mean(rates: tuple[float, ...]) -> float:
    """Average rates as they are compared, by their ratios; NaN of none."""
    return math.exp(statistics.fmean(map(math.log, rates))) if rates else math.nan


def _place(record: Record, depth: int, batch_size: int, arm: str, rate: float) -> Place:
    runs = [run for run in _runs(record, "compare", arm, depth, batch_size) if run.spec.lr == rate]
    finished = [run for run in runs if run.status == "finished"]
    loss, chance = math.log(class_count(record)), chance_of(record)
    return Place(
        arm=arm,
        depth=depth,
        batch_size=batch_size,
        lr=rate,
        seeds=len(runs),
        accuracy=spread(run.epochs[-1].val_accuracy for run in finished),
        exploded_at_step=tuple(run.diverged_at_step or 0 for run in runs if run.status == "diverged"),
        guessing=sum(
            not (run.epochs[-1].train_loss < loss and chance.is_beaten(run.epochs[-1].val_accuracy)) for run in finished
        ),
        waiting=sum(run.status in ("waiting", "running") for run in runs),
    )


def _brackets(record: Record, arm: str, depth: int, batch_size: int) -> Iterator[Bracket]:
    runs = _runs(record, "stability", arm, depth, batch_size)
    classes, chance = class_count(record), chance_in_search(record, batch_size)
    for seed in record.config["seeds"]:
        tried = tried_rates((run for run in runs if run.spec.seed == seed), classes=classes, chance=chance)
        if tried:
            yield bracket(tried)


def _runs(record: Record, purpose: str, arm: str, depth: int, batch_size: int) -> list[RunRecord]:
    wanted = (purpose, arm, depth, batch_size)
    specs = ((run, run.spec) for run in record.runs)
    return [run for run, spec in specs if (spec.purpose, spec.arm, spec.depth, spec.batch_size) == wanted]

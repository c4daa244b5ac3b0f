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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steadynorm.lab.configuration import (
    RegimeConfig,
    check_arms,
    check_experiment,
    check_lists,
    check_network,
    check_rates,
    check_regime,
    check_split,
    regime_of,
)
from steadynorm.lab.data import first
from steadynorm.lab.experiment import Task, run_experiment
from steadynorm.lab.failure import UserError
from steadynorm.lab.grid import train_grid
from steadynorm.lab.progress import Display
from steadynorm.lab.records import RunRecord, RunSpec
from steadynorm.lab.stability import SEARCH_STEPS, chance_in_search, next_rate, tried_rates

__all__ = ["SweepConfig", "run"]

SEARCH_EPOCHS = 2  # the second one shows whether the first has taught anything
SEARCH_VALIDATION = 500  # images; their accuracy decides nothing here


@dataclass(frozen=True, kw_only=True)
class SweepConfig(RegimeConfig):
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


def run(config: SweepConfig, display: Display) -> Path:
    """Run the experiment, or the rest of it; see :func:`steadynorm.lab.experiment.run_experiment`."""
    return run_experiment("sweep", config, display, quick=QUICK, check=_check, work=_work)


def _work(task: Task[SweepConfig]) -> None:
    """Train the grid, then search."""
    config = task.config
    settings = regime_of(config, task.record, depth=config.depth[0], batch_size=config.batch_size[0])
    specs = [
        RunSpec(arm=arm, seed=seed, lr=rate, epochs=config.epochs, batch_size=batch_size, depth=depth)
        for seed, depth, batch_size, arm, rate in itertools.product(
            config.seeds, config.depth, config.batch_size, config.arms, config.lr
        )
    ]
    runs = train_grid(specs, settings, task.dataset, directory=task.directory, display=task.display, pool=task.pool)
    if config.largest_rate:
        _search(task, runs)


def _search(task: Task[SweepConfig], runs: tuple[RunRecord, ...]) -> None:
    """Bisect for every arm, depth, batch size and seed, all of a batch size side by side.

    What was tried before a stop is known again.
    """
    config = task.config
    for batch_size in config.batch_size:
        settings = regime_of(config, task.record, depth=config.depth[0], batch_size=batch_size)
        classes, chance = len(task.dataset.classes), chance_in_search(task.record, batch_size)
        few = replace(
            task.dataset,
            train=first(task.dataset.train, SEARCH_STEPS * batch_size),
            validation=first(task.dataset.validation, SEARCH_VALIDATION),
        )
        tried: dict[tuple[int, int, str], dict[float, bool]] = {
            place: {} for place in itertools.product(config.seeds, config.depth, config.arms)
        }
        while specs := {
            place: _searching(*place, batch_size, rate)
            for place, known in tried.items()
            if (rate := next_rate(known)) is not None
        }:
            found = train_grid(
                list(specs.values()),
                replace(settings, milestones=()),
                few,
                directory=task.directory,
                display=task.display,
                before=runs,
                pool=task.pool,
            )
            runs = (*runs, *found)
            for place, run in zip(specs, found, strict=True):
                tried[place] |= tried_rates([run], classes=classes, chance=chance)


def _searching(seed: int, depth: int, arm: str, batch_size: int, rate: float) -> RunSpec:
    """Say how a rate is tried."""
    return RunSpec(
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
    check_regime(config)
    if min(config.batch_size) < 2:
        raise UserError(f"--batch-size: must be at least 2, got {min(config.batch_size)}.")
    for depth in config.depth:
        check_network(config.network, depth=depth, widths=config.widths)

"""Train the same network with and without batch normalization and compare.

Question: what does batch normalization change for a CNN on CIFAR-10: accuracy, its steadiness, gradient norms?

Expected (the article): about 75 % validation accuracy by epoch 10 with it, near 60 % and unsteady without; lower
and steadier gradient norms with it. With a shallow, well-initialised network the gap may be smaller, and each arm
may prefer its own learning rate: ``--tune-lr`` looks for it, on held-out training images.

On the embedded data the article's settings leave the network without normalization at chance: 1,536 images make 12
steps of 128 an epoch. There the defaults are others, at which both arms train; see ``docs/compare.md``.

Cost: on two cores with bfloat16, about a minute per epoch and arm on CIFAR-10; under two minutes in all on the
embedded data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from steadynorm.lab.analysis import best_rate
from steadynorm.lab.configuration import (
    TrainingConfig,
    check_arms,
    check_at_least,
    check_experiment,
    check_lists,
    check_rates,
    check_split,
    check_training,
    settings_of,
)
from steadynorm.lab.data import hold_out
from steadynorm.lab.experiment import Task, run_experiment
from steadynorm.lab.grid import train_grid
from steadynorm.lab.progress import Display
from steadynorm.lab.records import RunRecord, RunSpec
from steadynorm.lab.training import Settings

__all__ = ["CompareConfig", "run"]

HELD_OUT = 0.1  # share of the training images that judges learning rates
TUNING_SHARE = 4  # a tuning run takes this fraction of the epochs
SEED_OF_HOLD_OUT = 0  # the same images judge every arm and rate
ARTICLE: Mapping[str, Any] = {"widths": (32, 64, 128), "batch_size": 128, "lr": 0.1}
EMBEDDED: Mapping[str, Any] = {"widths": (16, 32, 64), "batch_size": 32, "lr": 0.02}
"""The rate is the best of 0.01, 0.02 and 0.03 for the network without normalization."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TrainingConfig):
    """Train the article's network once per normalization and seed, and write a report.

    The first run needs no data: it trains on the embedded shapes. For the article's experiment say
    --data cifar10, with --data-dir where the data set already lies on disk.
    """

    widths: tuple[int, ...] | None = None  # type: ignore[assignment] # only until the data is known
    """Channels of each stage of the cnn; default: the article's 32 64 128, on the embedded data 16 32 64."""
    batch_size: int | None = None  # type: ignore[assignment]
    """Images that are normalized together; default: the article's 128, on the embedded data 32."""
    lr: float | None = None  # type: ignore[assignment]
    """Learning rate of SGD, the same for every arm; default: the article's 0.1, on the embedded data 0.02."""
    arms: tuple[str, ...] = ("batch_norm", "none")
    """Normalizations to compare: batch_norm, none, batch_renorm, gated_batch_norm, ghost_batch_norm,
    self_tuned_batch_norm, sync_batch_norm, frozen_batch_norm, torch_batch_norm, layer_norm, group_norm,
    instance_norm."""
    accumulate: int = 1
    """Batches in a step, their gradients averaged: 2 x 64 takes the steps of 128 with the normalization of 2. Running
    statistics of ours that training does not look at move once a step as well."""
    tune_lr: tuple[float, ...] = ()
    """Rates to choose each arm's own best from, in short runs judged on a tenth of the training images;
    the arms are then compared at --lr and, beside it, each at its own."""

    def by_data(self) -> Mapping[str, Any]:
        """Give the article's settings, or those for the embedded data."""
        return EMBEDDED if self.data == "shapes" else ARTICLE


QUICK: dict[str, Any] = {"epochs": 5, "milestones": (3, 4)}


def run(config: CompareConfig, display: Display) -> Path:
    """Run the experiment, or the rest of it; see :func:`steadynorm.lab.experiment.run_experiment`."""
    return run_experiment("compare", config, display, quick=QUICK, check=_check, work=_work)


def _work(task: Task[CompareConfig]) -> None:
    """Train every network: first those that choose learning rates, then those that are compared."""
    config = task.config
    settings = settings_of(config, task.record, accumulate=config.accumulate)
    tuned = _tune(task, settings)
    assert config.lr is not None
    rates = {arm: {config.lr} for arm in config.arms}
    for arm in config.arms:
        best = best_rate(tuned, arm)
        if best is not None:
            rates[arm].add(best)
    specs = [
        RunSpec(arm=arm, seed=seed, lr=rate, epochs=config.epochs)
        for seed in config.seeds
        for arm in config.arms
        for rate in sorted(rates[arm])
    ]
    train_grid(
        specs, settings, task.dataset, directory=task.directory, display=task.display, before=tuned, pool=task.pool
    )


def _tune(task: Task[CompareConfig], settings: Settings) -> tuple[RunRecord, ...]:
    """Train short runs at each rate on nine tenths of the training images, judged on the rest."""
    config = task.config
    if not config.tune_lr:
        return ()
    rest, held = hold_out(task.dataset.train, fraction=HELD_OUT, seed=SEED_OF_HOLD_OUT)
    epochs = max(1, config.epochs // TUNING_SHARE)
    scaled = (milestone * epochs // config.epochs for milestone in settings.milestones)
    # A milestone of 0 would lower the rate before the first step, and so try another rate than the one asked for.
    shorter = replace(settings, milestones=tuple(milestone for milestone in scaled if milestone > 0))
    specs = [
        RunSpec(arm=arm, seed=config.seeds[0], lr=rate, epochs=epochs, purpose="tune")
        for arm in config.arms
        for rate in config.tune_lr
    ]
    data = replace(task.dataset, train=rest, validation=held)
    return train_grid(specs, shorter, data, directory=task.directory, display=task.display, pool=task.pool)


def _check(config: CompareConfig) -> None:
    check_arms(config.arms)
    check_lists(config, ("arms", "tune_lr"), may_be_empty=("tune_lr",))
    check_experiment(config)
    assert config.batch_size is not None
    check_split(config.batch_size)
    check_at_least(config, (("batch_size", 2), ("accumulate", 1)))
    check_rates("--tune-lr", config.tune_lr)
    check_training(config)

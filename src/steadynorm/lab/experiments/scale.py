"""Train with larger and larger batches, by the recipe for them and by what is left without each of its steps.

Question: how large may a batch be before accuracy falls, and which steps of the large-batch recipe hold it up (Goyal et
al. 2017, arXiv 1706.02677)?

Expected (the paper, ImageNet): with the whole recipe accuracy stays within a point up to 8,192 images; without linear
scaling or without warm-up it does not; zero-initialised last gammas and norms without weight decay help a little;
statistics of 32 images, never of the whole batch. Freezing the statistics in the last epochs is not of that paper but
of Wu & Johnson 2021 (arXiv 2105.07576). On CIFAR-10 a large batch leaves few steps: 5 an epoch at 8,192.

Cost: every network sees the same number of images, so all cost about the same: on two cores with bfloat16 about a
minute for an epoch of CIFAR-10, times epochs, variants, batch sizes and seeds.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from steadynorm.lab.configuration import (
    RegimeConfig,
    check_at_least,
    check_experiment,
    check_lists,
    check_network,
    check_rates,
    check_regime,
    check_split,
    flag,
    regime_of,
)
from steadynorm.lab.experiment import Task, run_experiment
from steadynorm.lab.failure import UserError
from steadynorm.lab.grid import train_grid
from steadynorm.lab.progress import Display
from steadynorm.lab.recipe import RECIPES, find_recipe
from steadynorm.lab.records import RunSpec
from steadynorm.lab.training import Settings
from steadynorm.lab.workers import number_of_workers

__all__ = ["ScaleConfig", "run"]

STATISTICS = 32  # images that the recipe normalizes together, as the arm ghost_batch_norm does
SMALL, WHOLE = "ghost_batch_norm", "sync_batch_norm"
STEPS = {"reference_batch": "linear_scaling", "warm_up": "warm_up", "freeze_last": "frozen_end"}
"""Field of the configuration -> the step of the recipe that it belongs to."""


@dataclass(frozen=True, kw_only=True)
class ScaleConfig(RegimeConfig):
    """Train at several batch sizes, by the large-batch recipe and without each of its steps, and write a report.

    Every batch size sees the same images as often. Under torchrun the batch is shared by the workers.
    """

    network: Literal["cnn", "resnet20"] = "resnet20"
    """resnet20: the residual network of He et al. 2016 for small images; cnn has no residual blocks to start as the
    identity."""
    batch_size: tuple[int, ...] = (128, 512, 2048, 8192)
    """Images in a step, on all workers together."""
    variants: tuple[str, ...] = tuple(RECIPES)
    """The recipe and what is left without a step of it: recipe, no_scaling, no_warm_up, no_zero_gamma, decayed_norms,
    whole_statistics, frozen_end, plain."""
    lr: float = 0.1
    """Learning rate of SGD at --reference-batch; with linear scaling it grows in proportion to the batch."""
    reference_batch: int = 128
    """Batch size at which the recipe's learning rate is --lr."""
    warm_up: int = 3
    """Epochs in which the rate rises from --lr to the scaled one."""
    freeze_last: int = 4
    """Epochs at the end in which frozen_end keeps the statistics."""
    at_once: int = 2048
    """Images in memory together, on all workers; a larger batch is averaged from several such, each normalized by
    itself."""
    depth: int = 6
    """Convolutions of the cnn."""
    augment: Literal["none", "crop-flip"] = "crop-flip"
    """crop-flip: random crop behind a border of 4 pixels, and mirroring."""


QUICK: dict[str, Any] = {
    "network": "cnn",
    "widths": (8, 16, 32),
    "batch_size": (64, 512),
    "reference_batch": 64,
    "variants": ("recipe", "no_scaling", "no_warm_up", "whole_statistics", "frozen_end", "plain"),
    "epochs": 6,
    "milestones": (4,),
    "warm_up": 2,
    "freeze_last": 2,
    "augment": "none",
}


def run(config: ScaleConfig, display: Display) -> Path:
    """Run the experiment, or the rest of it; see :func:`steadynorm.lab.experiment.run_experiment`."""
    return run_experiment("scale", config, display, quick=QUICK, check=_check, work=_work)


def _work(task: Task[ScaleConfig]) -> None:
    config = task.config
    specs = [
        spec_of(config, variant, batch_size, seed)
        for seed, batch_size, variant in itertools.product(config.seeds, config.batch_size, config.variants)
    ]
    shared = regime_of(config, task.record, depth=config.depth, batch_size=config.batch_size[0])

    def settings(spec: RunSpec) -> Settings:
        recipe = find_recipe(spec.variant)
        return replace(
            shared,
            at_once=config.at_once,
            warm_up=config.warm_up if recipe.warm_up else 0,
            warm_up_from=config.lr,
            spare_norms=recipe.spared_norms,
            zero_last_gamma=recipe.zero_gamma and config.network == "resnet20",
            freeze_last=config.freeze_last if recipe.frozen_end else 0,
        )

    train_grid(specs, settings, task.dataset, directory=task.directory, display=task.display, pool=task.pool)


def spec_of(config: ScaleConfig, variant: str, batch_size: int, seed: int) -> RunSpec:
    """Say how a network is trained."""
    recipe = find_recipe(variant)
    return RunSpec(
        arm=SMALL if recipe.small_statistics else WHOLE,
        seed=seed,
        lr=config.lr * (batch_size / config.reference_batch if recipe.linear_scaling else 1),
        epochs=config.epochs,
        batch_size=batch_size,
        variant=variant,
    )


def _check(config: ScaleConfig) -> None:
    for variant in config.variants:
        find_recipe(variant)
    check_lists(config, ("variants", "batch_size"))
    _check_steps(config)
    check_experiment(config)
    check_at_least(config, (("reference_batch", 1), ("warm_up", 0), ("freeze_last", 0), ("at_once", 2)))
    check_rates("--lr", (config.lr,))
    check_regime(config)
    check_network(config.network, depth=config.depth, widths=config.widths)
    _check_batches(config)
    for name in ("warm_up", "freeze_last"):
        if getattr(config, name) >= config.epochs:
            raise UserError(f"{flag(name)}: must be less than the {config.epochs} epochs, got {getattr(config, name)}.")
    if config.network != "resnet20" and "no_zero_gamma" in config.variants:
        raise UserError(
            f"--variants: no_zero_gamma needs residual blocks, --network {config.network} has none. "
            "Drop it, or use resnet20."
        )


def _check_steps(config: ScaleConfig) -> None:
    """Refuse a flag on the command line that belongs to a step which no variant takes."""
    recipes = [find_recipe(variant) for variant in config.variants]
    for name, step in STEPS.items():
        if flag(name) in config.given and not any(getattr(recipe, step) for recipe in recipes):
            raise UserError(
                f"{flag(name)}: belongs to a step that none of --variants takes. Drop it, or add a variant."
            )


def _check_batches(config: ScaleConfig) -> None:
    """Refuse batches that cannot be cut into equal parts that fit into memory, for every worker."""
    if min(config.batch_size) < 2:
        raise UserError(f"--batch-size: must be at least 2, got {min(config.batch_size)}.")
    check_split(*config.batch_size)
    for batch_size in config.batch_size:
        if batch_size > config.at_once and (batch_size % config.at_once or config.at_once % number_of_workers()):
            raise UserError(
                f"--at-once: {batch_size} images cannot be cut into equal parts of {config.at_once} for "
                f"{number_of_workers()} workers. Choose one that divides every larger --batch-size."
            )

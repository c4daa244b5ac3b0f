"""Train the same network with and without batch normalization and compare.

Question: what does batch normalization change for a CNN on CIFAR-10: accuracy, its steadiness, gradient norms?

Expected (the article): about 75 % validation accuracy by epoch 10 with it, near 60 % and unsteady without; lower
and steadier gradient norms with it. With a shallow, well-initialised network the gap may be smaller, and each arm
may prefer its own learning rate: ``--tune-lr`` looks for it, on held-out training images.

Cost: on two cores with bfloat16, about a minute per epoch and arm on CIFAR-10; under two minutes in all on the
embedded data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from steadynorm.lab.analysis import best_rate
from steadynorm.lab.data import Dataset, hold_out, load_dataset
from steadynorm.lab.experiment import (
    check_no_repeats,
    check_same,
    describe,
    explain_stop,
    flag,
    new_place,
    stored_config,
)
from steadynorm.lab.failure import UserError
from steadynorm.lab.grid import train_grid
from steadynorm.lab.networks import build_network
from steadynorm.lab.normalizations import find_normalization
from steadynorm.lab.progress import Display
from steadynorm.lab.records import Record, RunRecord, RunSpec, read_record
from steadynorm.lab.run_directory import RunDirectory
from steadynorm.lab.training import Settings

__all__ = ["CompareConfig", "run"]

HELD_OUT = 0.1  # share of the training images that judges learning rates
TUNING_SHARE = 4  # a tuning run takes this fraction of the epochs
SEED_OF_HOLD_OUT = 0  # the same images judge every arm and rate


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Train the article's network once per normalization and seed, and write a report.

    The first run needs no data: it trains on the embedded shapes. For the article's experiment say
    --data cifar10, with --data-dir where the data set already lies on disk.
    """

    arms: tuple[str, ...] = ("batch_norm", "none")
    """Normalizations to compare: batch_norm, none, batch_renorm, gated_batch_norm, ghost_batch_norm,
    self_tuned_batch_norm, torch_batch_norm, layer_norm, group_norm, instance_norm."""
    seeds: tuple[int, ...] = (0,)
    """One training per arm and seed; a seed decides weights, order and augmentation, the same in every arm."""
    network: Literal["cnn", "resnet20"] = "cnn"
    """cnn: 3x3 convolutions in stages; resnet20: the residual network of He et al. 2016 for small images."""
    depth: int = 6
    """Convolutions of the cnn."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of each stage of the cnn; a stage ends with 2x2 pooling."""
    data: Literal["shapes", "cifar10"] = "shapes"
    """shapes: embedded, drawn in seconds; cifar10: from --data-dir, else from the Hugging Face hub."""
    data_dir: Path | None = None
    """Where CIFAR-10 lies: Hugging Face's Parquet files, or torchvision's cifar-10-batches-py."""
    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 128
    """Images that are normalized together; with --accumulate 1 those of a step."""
    accumulate: int = 1
    """Batches in a step, their gradients averaged: 2 x 64 takes the steps of 128 with the normalization of 2. Running
    statistics of ours that training does not look at move once a step as well."""
    lr: float = 0.1
    """Learning rate of SGD, the same for every arm."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Decay of all parameters."""
    milestones: tuple[int, ...] = (10, 15)
    """Epochs after which the learning rate is divided by ten."""
    augment: Literal["none", "crop-flip"] = "none"
    """crop-flip: random crop behind a border of 4 pixels, and mirroring."""
    tune_lr: tuple[float, ...] = ()
    """Rates to choose each arm's own best from, in short runs judged on a tenth of the training images;
    the arms are then compared at --lr and, beside it, each at its own."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the hardware multiplies bfloat16 matrices."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    out: Path | None = None
    """New directory for everything that is written; default: runs/compare-DATE-TIME."""
    resume: Path | None = None
    """Continue the experiment in this run directory behind its last finished epoch, with its own configuration."""
    quick: bool = False
    """Five epochs of a thin network on the embedded data, in under a minute."""
    json: bool = False
    """Print the summary as JSON on standard output."""


QUICK: dict[str, Any] = {"epochs": 5, "widths": (16, 32, 64), "milestones": (3, 4)}


def run(config: CompareConfig, display: Display) -> Path:
    """Run the experiment, or the rest of it.

    Returns:
        the run directory, with every network trained; the report is still to be made.

    Raises:
        UserError: what was asked for cannot be done.
    """
    place = config.resume or config.out or new_place("compare")
    stored = None if config.resume is None else read_record(config.resume)
    config = _checked(_quickened(config) if stored is None else stored_config(config, stored))
    if stored is not None:
        torch.set_num_threads(stored.resolved["threads"])
    dataset = load_dataset(config.data, data_dir=config.data_dir, progress=display.message)
    record = describe("compare", config, dataset)
    if stored is not None:
        check_same(stored, record, display)
    directory = RunDirectory(place)
    with directory.lock(), explain_stop("compare", place, display):
        if stored is None:
            directory.begin(record)
        _announce(record, place, display)
        _train(config, _settings(config, record), dataset, directory, display)
    return place


def _announce(record: Record, place: Path, display: Display) -> None:
    if record.config["data"] == "shapes":
        display.message("embedded data; the article's experiment is: steadynorm compare --data cifar10")
    display.message(
        f"{record.config['network']} on {record.config['data']} in {record.resolved['precision']} "
        f"on {record.resolved['device']} with {record.resolved['threads']} threads, into {place}"
    )


def _train(
    config: CompareConfig, settings: Settings, dataset: Dataset, directory: RunDirectory, display: Display
) -> None:
    """Train every network: first those that choose learning rates, then those that are compared."""
    tuned = _tune(config, settings, dataset, directory, display)
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
    train_grid(specs, settings, dataset, directory=directory, display=display, before=tuned)


def _tune(
    config: CompareConfig, settings: Settings, dataset: Dataset, directory: RunDirectory, display: Display
) -> tuple[RunRecord, ...]:
    """Train short runs at each rate on nine tenths of the training images, judged on the rest."""
    if not config.tune_lr:
        return ()
    rest, held = hold_out(dataset.train, fraction=HELD_OUT, seed=SEED_OF_HOLD_OUT)
    epochs = max(1, config.epochs // TUNING_SHARE)
    scaled = (milestone * epochs // config.epochs for milestone in settings.milestones)
    # A milestone of 0 would lower the rate before the first step, and so try another rate than the one asked for.
    shorter = replace(settings, milestones=tuple(milestone for milestone in scaled if milestone > 0))
    specs = [
        RunSpec(arm=arm, seed=config.seeds[0], lr=rate, epochs=epochs, purpose="tune")
        for arm in config.arms
        for rate in config.tune_lr
    ]
    data = replace(dataset, train=rest, validation=held)
    return train_grid(specs, shorter, data, directory=directory, display=display)


def _settings(config: CompareConfig, record: Record) -> Settings:
    return Settings(
        network=config.network,
        depth=config.depth,
        widths=config.widths,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        milestones=config.milestones,
        augment=config.augment,
        device=torch.device(record.resolved["device"]),
        precision=record.resolved["precision"],
    )


def _quickened(config: CompareConfig) -> CompareConfig:
    """Shorten what the user did not set."""
    if not config.quick:
        return config
    if config.data != "shapes":
        raise UserError(f"--quick: runs on the embedded data, got --data {config.data}. Drop one of the two.")
    default = CompareConfig()
    return replace(
        config, **{name: value for name, value in QUICK.items() if getattr(config, name) == getattr(default, name)}
    )


def _checked(config: CompareConfig) -> CompareConfig:
    """Refuse what makes no experiment, before anything is written."""
    for arm in config.arms:
        find_normalization(arm)
    check_no_repeats(config, ("arms", "seeds", "tune_lr"))
    for name in ("arms", "seeds"):
        if not getattr(config, name):
            raise UserError(f"{flag(name)}: at least one value is needed.")
    for name, least in (("epochs", 1), ("batch_size", 2), ("accumulate", 1), ("momentum", 0), ("weight_decay", 0)):
        if not getattr(config, name) >= least:
            raise UserError(f"{flag(name)}: must be at least {least}, got {getattr(config, name)}.")
    if not config.momentum < 1:
        raise UserError(f"--momentum: must be below 1, got {config.momentum}.")
    if not all(0 < rate < float("inf") for rate in (config.lr, *config.tune_lr)):
        raise UserError("--lr, --tune-lr: a learning rate must be a positive number.")
    if not all(0 <= seed < 2**63 for seed in config.seeds):
        raise UserError(f"--seeds: must be in [0, 2**63), got {' '.join(map(str, config.seeds))}.")
    if config.data == "shapes" and config.data_dir is not None:
        raise UserError("--data-dir: is read with --data cifar10 only. Add --data cifar10.")
    with torch.device("meta"):  # no memory, no time; says what is wrong with depth and widths
        build_network(config.network, arm="none", depth=config.depth, widths=config.widths, classes=10, seed=0)
    return config

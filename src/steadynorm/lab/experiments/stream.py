"""Batch size 1, in random class order: train on it from scratch, and meet it with a network trained on batches.

Question: how much accuracy does batch size 1 cost, and does a layer that is gated between the batch and its memory pay
less than the others?

Expected (the article): the gated layer is falsified if its accuracy at batch size 1 falls more than 15 points below
the default build's, batch norm trained on batches of 128. Every arm sees the same number of images; the learning rate
is scaled with the batch size (Goyal et al. 2017, arXiv 1706.02677). Plain batch norm should fail in evaluation: its
running statistics remember ten images.

Then the default build meets the test images one by one: by its stored statistics, by those of each image, and by those
that follow the stream; what is lost beside the stored ones is the price of each way to adapt.

Cost: a step of one image takes some 5 ms on a core, so 30,000 images and five arms a quarter of an hour for each seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from steadynorm.lab.adaptation import ADAPTATIONS, Calibration, calibrate, check_methods, judge_methods
from steadynorm.lab.cells import Measure, measure_cells
from steadynorm.lab.checkpoint import Checkpoint
from steadynorm.lab.configuration import (
    TrainingConfig,
    check_arms,
    check_at_least,
    check_experiment,
    check_lists,
    check_split,
    check_training,
    settings_of,
)
from steadynorm.lab.data import evaluation_batches, first
from steadynorm.lab.data.streams import stream
from steadynorm.lab.experiment import Task, run_experiment
from steadynorm.lab.grid import train_grid
from steadynorm.lab.progress import Display
from steadynorm.lab.records import Factor, Measurement, RunSpec
from steadynorm.lab.training import evaluate
from steadynorm.surgery import recalibrate_

__all__ = ["DEFAULT_BUILD", "ORDERS", "STATELESS", "StreamConfig", "default_spec", "run", "single_spec"]

DEFAULT_BUILD = "batch_norm"
"""The arm that is trained on whole batches, to be compared with."""
ORDERS = ("iid", "class_ordered")
"""How the test images arrive, one by one."""
STATELESS = ("group_norm", "layer_norm", "instance_norm", "none", "frozen_batch_norm")
"""Arms whose evaluation has no running statistics that training moves."""
CALIBRATION = 1000  # training images that a network's ways to adapt are calibrated on, and statistics measured on
CALIBRATION_BATCH = 100


@dataclass(frozen=True, kw_only=True)
class StreamConfig(TrainingConfig):
    """Train at batch size 1 beside the default build, and let that build meet a stream of single images.

    The default build is batch norm on batches of --batch-size at rate --lr; at batch size 1 the rate is divided by
    --batch-size.
    """

    arms: tuple[str, ...] = ("gated_batch_norm", "batch_norm", "batch_renorm", "frozen_batch_norm", "group_norm")
    """Normalizations that train at batch size 1, as in steadynorm compare."""
    methods: tuple[str, ...] = tuple(ADAPTATIONS)
    """Ways in which the default build meets the stream."""
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


def run(config: StreamConfig, display: Display) -> Path:
    """Run the experiment, or the rest of it; see :func:`steadynorm.lab.experiment.run_experiment`."""
    return run_experiment("stream", config, display, quick=QUICK, check=_check, work=_work)


def _work(task: Task[StreamConfig]) -> None:
    """Train the default build and every arm at batch size 1, then measure what needs the trained networks."""
    config = task.config
    specs = [
        spec
        for seed in config.seeds
        for spec in (default_spec(config, seed), *(single_spec(config, arm, seed) for arm in config.arms))
    ]
    runs = train_grid(
        specs,
        settings_of(config, task.record),
        task.dataset,
        directory=task.directory,
        display=task.display,
        pool=task.pool,
    )
    finished = {run.spec.name for run in runs if run.status == "finished"}
    grid: list[dict[str, Factor]] = []
    for seed in config.seeds:
        grid += [
            {"part": "recalibrated", "arm": arm, "seed": seed}
            for arm in config.arms
            if single_spec(config, arm, seed).name in finished
        ]
        if default_spec(config, seed).name in finished:
            grid += [{"part": "stream", "order": order, "seed": seed} for order in ORDERS]
    measure_cells(grid, _measure, task)


def default_spec(config: StreamConfig, seed: int) -> RunSpec:
    """Say how the default build is trained."""
    return RunSpec(arm=DEFAULT_BUILD, seed=seed, lr=config.lr, epochs=config.epochs)


def single_spec(config: StreamConfig, arm: str, seed: int) -> RunSpec:
    """Say how an arm is trained at batch size 1."""
    return RunSpec(arm=arm, seed=seed, lr=config.lr / config.batch_size, epochs=config.epochs, batch_size=1)


def _measure(task: Task[StreamConfig]) -> Measure:
    """Make what measures a cell; a checkpoint is read and calibrated once."""
    config, settings = task.config, settings_of(task.config, task.record)
    few = first(task.dataset.train, CALIBRATION)

    @cache
    def default_build(seed: int) -> tuple[Checkpoint, Calibration]:
        checkpoint = task.directory.load_checkpoint(default_spec(config, seed))
        return checkpoint, calibrate(checkpoint.model, training_batches())

    def training_batches() -> Iterator[Any]:
        return evaluation_batches(few, dataset=task.dataset, batch_size=CALIBRATION_BATCH, device=settings.device)

    def measure(factors: dict[str, Factor], advance: Callable[[float], None]) -> Iterator[Measurement]:
        seed = int(factors["seed"])
        if factors["part"] == "recalibrated":
            arm = str(factors["arm"])
            model = task.directory.load_checkpoint(single_spec(config, arm, seed)).model
            if arm not in STATELESS:
                recalibrate_(model, training_batches())
            _, accuracy = evaluate(model, task.dataset.validation, task.dataset, settings)
            yield Measurement(quantity="accuracy", value=accuracy)
            return
        checkpoint, calibration = default_build(seed)
        images = first(task.dataset.validation, config.stream_images)
        order = stream(images.labels, str(factors["order"]), batch_size=1, seed=seed)
        yield from judge_methods(
            config.methods,
            checkpoint.model,
            calibration,
            images,
            order,
            dataset=task.dataset,
            settings=settings,
            advance=advance,
        )

    return measure


def _check(config: StreamConfig) -> None:
    check_arms(config.arms)
    check_methods(config.methods)
    check_lists(config, ("arms", "methods"))
    check_experiment(config)
    check_split(config.batch_size, 1)
    check_at_least(config, (("batch_size", 2), ("stream_images", 1)))
    check_training(config)

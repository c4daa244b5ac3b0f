"""Evaluate under shift: by running statistics of several decays, and by ways to adapt that need no gradient.

Question: which decay of the running statistics survives a shift of the data (0.9, 0.99, 0.5, self-tuned)? And may a
network take its statistics from the shifted stream without ever being worse off than with the stored ones?

Expected: swapping the labels of two classes, the article's shift, moves no activation, so no decay can survive it
better than another. Under corrupted images stored statistics fail at any decay; a batch's own win much of it back where
the stream is mixed well, and lose everything where it is ordered by class or shows one class (Schneider et al. 2020,
arXiv 2006.16971; Gong et al. 2022, arXiv 2208.05117). The gate should lose at most 0.5 points against the stored
statistics on any stream, and keep nine tenths of what batch statistics win on well-mixed ones.

Cost: on two cores, the training (a minute an epoch of CIFAR-10), then some ten seconds for each of a hundred streams of
1,000 images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.lab.adaptation import ADAPTATIONS, Calibration, calibrate, check_methods, judge_methods
from steadynorm.lab.cells import Measure, measure_cells
from steadynorm.lab.configuration import (
    TrainingConfig,
    check_at_least,
    check_experiment,
    check_lists,
    check_split,
    check_training,
    settings_of,
)
from steadynorm.lab.data import Images, evaluation_batches, first, take
from steadynorm.lab.data.cifar10_c import CIFAR10_C, load_cifar10_c
from steadynorm.lab.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from steadynorm.lab.data.streams import mix_domains, stream
from steadynorm.lab.experiment import Task, run_experiment
from steadynorm.lab.failure import UserError
from steadynorm.lab.grid import train_grid
from steadynorm.lab.progress import Display
from steadynorm.lab.records import Factor, Measurement, RunSpec
from steadynorm.lab.several_decays import DECAYS, with_decay
from steadynorm.lab.training import evaluate

__all__ = ["ARM", "CLEAN", "KINDS", "MIXED", "SWAPPED", "ShiftConfig", "run"]

ARM = "several_decays"
CLEAN, SWAPPED, MIXED = "clean", "swapped_labels", "mixed"
"""Shown beside the corruptions: the images as they are; with labels 0 and 1 swapped; all corruptions at once."""
KINDS = ("iid", "class_ordered", "bursts", "single_class", "one_by_one")
"""How images arrive; see :mod:`steadynorm.lab.data.streams`. The last is iid in batches of one."""
CALIBRATION = 2000  # training images that the ways to adapt are calibrated on


@dataclass(frozen=True, kw_only=True)
class ShiftConfig(TrainingConfig):
    """Train once, then evaluate under shift: by several decays' statistics, and by ways to adapt to the stream.

    CIFAR-10-C's own files (gaussian_noise.npy and so on, with labels.npy) are used where --data-dir has them; without,
    the corruptions are made after them.
    """

    methods: tuple[str, ...] = tuple(ADAPTATIONS)
    """Ways to choose the statistics of a test batch."""
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    """What is done to the test images."""
    severities: tuple[int, ...] = SEVERITIES
    """How hard, from 1 to 5; streams other than well-mixed ones are of the hardest alone."""
    stream_images: int = 1000
    """Images in each stream."""
    stream_batch: int = 100
    """Images that arrive together."""
    single_images: int = 300
    """Images in the streams in which they arrive one by one."""
    epochs: int = 8
    """Passes over the training images."""
    milestones: tuple[int, ...] = (6,)
    """Epochs after which the learning rate is divided by ten."""


QUICK: dict[str, Any] = {
    "widths": (8, 16, 32),
    "epochs": 6,
    "milestones": (5,),
    "corruptions": ("gaussian_noise", "contrast"),
    "severities": (5,),
    "stream_images": 200,
    "stream_batch": 50,
    "single_images": 20,
}


def run(config: ShiftConfig, display: Display) -> Path:
    """Run the experiment, or the rest of it; see :func:`steadynorm.lab.experiment.run_experiment`."""
    return run_experiment("shift", config, display, quick=QUICK, check=_check, work=_work)


def _work(task: Task[ShiftConfig]) -> None:
    """Train one network for each seed, then show it every stream."""
    config, settings = task.config, settings_of(task.config, task.record)
    specs = [_spec(config, seed) for seed in config.seeds]
    runs = train_grid(specs, settings, task.dataset, directory=task.directory, display=task.display, pool=task.pool)
    lost = [run.spec.name for run in runs if run.status != "finished"]
    if lost:
        raise UserError(f"shift: the network must train to the end, {', '.join(lost)} diverged. Lower --lr.")
    grid = [factors for seed in config.seeds for factors in _grid(config, seed)]
    measure_cells(grid, _measure, task)


def _spec(config: ShiftConfig, seed: int) -> RunSpec:
    return RunSpec(arm=ARM, seed=seed, lr=config.lr, epochs=config.epochs)


def _grid(config: ShiftConfig, seed: int) -> Iterator[dict[str, Factor]]:
    """Give the cells of a seed: stored statistics of each decay, then the ways to adapt on each stream."""
    shifts: list[tuple[str, int]] = [(name, severity) for severity in config.severities for name in config.corruptions]
    for name, severity in [(CLEAN, 0), (SWAPPED, 0), *shifts]:
        yield {"part": "decays", "shift": name, "severity": severity, "seed": seed}
    hardest = [(name, severity) for name, severity in shifts if severity == max(config.severities)]
    for kind in KINDS:
        shown = shifts if kind == "iid" else hardest
        mixed = [(MIXED, severity) for severity in config.severities] if kind == "iid" else []
        for name, severity in [(CLEAN, 0), *shown, *mixed]:
            yield {"part": "stream", "kind": kind, "shift": name, "severity": severity, "seed": seed}


def _measure(task: Task[ShiftConfig]) -> Measure:
    """Make what measures a cell; each seed's network is read and calibrated once."""
    config, dataset, settings = task.config, task.dataset, settings_of(task.config, task.record)

    @cache
    def trained(seed: int) -> nn.Module:
        return task.directory.load_checkpoint(_spec(config, seed)).model

    @cache
    def adapting(seed: int) -> tuple[nn.Module, Calibration]:
        model, few = with_decay(trained(seed), DECAYS[0]), first(dataset.train, CALIBRATION)
        batches = evaluation_batches(few, dataset=dataset, batch_size=config.stream_batch, device=settings.device)
        return model, calibrate(model, batches)

    def measure(factors: dict[str, Factor], advance: Callable[[float], None]) -> Iterator[Measurement]:
        shift, severity, seed = str(factors["shift"]), int(factors["severity"]), int(factors["seed"])
        if factors["part"] == "decays":
            images = _images(task, shift, severity, seed, config.stream_images)
            for decay in (*DECAYS, None):
                _, accuracy = evaluate(with_decay(trained(seed), decay), images, dataset, settings)
                yield Measurement(subject=str(decay or "self_tuned"), quantity="accuracy", value=accuracy)
            return
        images, order = _stream(task, str(factors["kind"]), shift, severity, seed)
        model, calibration = adapting(seed)
        yield Measurement(quantity="images", value=float(len(images)))
        yield Measurement(quantity="published", value=float(_published(task, shift, severity) is not None))
        yield from judge_methods(
            config.methods,
            model,
            calibration,
            images,
            order,
            dataset=dataset,
            settings=settings,
            advance=advance,
        )

    return measure


def _stream(task: Task[ShiftConfig], kind: str, shift: str, severity: int, seed: int) -> tuple[Images, list[Tensor]]:
    """Give the images of a stream and its batches."""
    config = task.config
    if shift == MIXED:
        domains = [_images(task, name, severity, seed, config.stream_images) for name in config.corruptions]
        images, _ = mix_domains(domains, seed=seed)
        return images, list(torch.split(torch.arange(len(images)), config.stream_batch))
    if kind == "single_class":
        images = _images(task, shift, severity, seed, config.stream_images, one_class=True)
        return images, stream(images.labels, "iid", batch_size=config.stream_batch, seed=seed)
    if kind == "one_by_one":
        images = _images(task, shift, severity, seed, config.single_images)
        return images, stream(images.labels, "iid", batch_size=1, seed=seed)
    images = _images(task, shift, severity, seed, config.stream_images)
    return images, stream(images.labels, kind, batch_size=config.stream_batch, seed=seed)


def _images(
    task: Task[ShiftConfig], shift: str, severity: int, seed: int, count: int, *, one_class: bool = False
) -> Images:
    """Give the first ``count`` validation images, or those of one class drawn at random, as they are shown."""
    published = _published(task, shift, severity)
    images = published or task.dataset.validation
    if one_class:
        images = take(images, torch.cat(stream(images.labels, "single_class", batch_size=count, seed=seed)))
    images = first(images, count)
    if shift in CORRUPTIONS and published is None:
        return corrupt(images, shift, severity=severity, seed=seed)
    if shift == SWAPPED:
        return Images(pixels=images.pixels, labels=_swap(images.labels))
    return images


def _published(task: Task[ShiftConfig], shift: str, severity: int) -> Images | None:
    """Give CIFAR-10-C's own images, where they are there."""
    if shift not in CIFAR10_C or task.config.data_dir is None:
        return None
    return load_cifar10_c(task.config.data_dir, shift, severity=severity)


def _swap(labels: Tensor) -> Tensor:
    """Swap classes 0 and 1."""
    return torch.where(labels < 2, 1 - labels, labels)


def _check(config: ShiftConfig) -> None:
    check_methods(config.methods)
    check_lists(config, ("methods", "corruptions", "severities"))
    unknown = [name for name in config.corruptions if name not in CORRUPTIONS]
    if unknown:
        raise UserError(f"--corruptions: none is called {unknown[0]!r}. Choose from {', '.join(CORRUPTIONS)}.")
    if not set(config.severities) <= set(SEVERITIES):
        raise UserError(f"--severities: must be from 1 to 5, got {' '.join(map(str, config.severities))}.")
    check_experiment(config)
    check_split(config.batch_size)
    check_at_least(config, (("stream_images", 1), ("stream_batch", 2), ("single_images", 1)))
    check_training(config)

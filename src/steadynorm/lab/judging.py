"""How well an adaptation method predicts a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from steadynorm.adaptation import ADAPTATIONS, Adaptation, Calibration, calibrate
from steadynorm.lab.data import Dataset, Images, evaluation_batches, first, some, take
from steadynorm.lab.describe.names import method_label
from steadynorm.lab.settings import Settings, autocast
from steadynorm.reporting.failure import UserError, check_known
from steadynorm.reporting.progress import Display
from steadynorm.reporting.records import Measurement, Record
from steadynorm.reporting.words import listing

__all__ = [
    *("calibrated", "calibration_images", "check_methods", "check_possible", "judge_methods", "left_out_methods"),
    *("stream_accuracy", "without_uncalibrated"),
]

CALIBRATED = ("gated", "gate")
"""Methods that need to know more of a network than its stored statistics."""
CLASSES = 3
"""Calibration needs images of so many: it compares batches of one, of two and of all."""


def check_methods(names: Sequence[str]) -> None:
    """Refuse an unknown adaptation method.

    Raises:
        UserError: a name is unknown.
    """
    check_known("--methods", names, ADAPTATIONS, what="way to adapt")


def check_possible(names: Sequence[str], dataset: Dataset) -> None:
    """Refuse methods of which none can be calibrated.

    Raises:
        UserError: the data have too few classes.
    """
    if not _possible(names, dataset):
        found = len(dataset.classes)
        raise UserError(f"--methods: {listing(names)} need images of {CLASSES} classes, got {found}. Add others.")


def _possible(names: Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    return tuple(name for name in names if len(dataset.classes) >= CLASSES or name not in CALIBRATED)


def without_uncalibrated(names: Sequence[str], dataset: Dataset, display: Display) -> tuple[str, ...]:
    """Leave out, and say so, the methods whose calibration needs more classes than there are."""
    kept = _possible(names, dataset)
    absent = listing([name for name in names if name not in kept])
    if absent:
        display.message(f"left out, since their calibration needs images of {CLASSES} classes: {absent}")
    return kept


def left_out_methods(record: Record) -> str:
    """Say in a report which methods were left out; see :func:`without_uncalibrated`."""
    classes = record.resolved["classes"]
    absent = [method_label(name) for name in record.config["methods"] if name in CALIBRATED]
    if not absent or (classes if isinstance(classes, int) else len(classes)) >= CLASSES:
        return ""
    return f" Left out, since their calibration needs images of {CLASSES} classes: {listing(absent)}."


def calibration_images(dataset: Dataset, count: int, *, batch_size: int) -> Images:
    """Give so many training images, or all; one that would be a batch alone, which has no statistics, is left out."""
    images = some(dataset.train, count)
    return first(images, len(images) - 1) if len(images) % batch_size == 1 else images


def calibrated(
    methods: Sequence[str], model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Calibration | None:
    """Calibrate the methods on a network, which may not have learned; None where none of them needs it.

    Args:
        methods: names of :data:`ADAPTATIONS`.
        model: stays as it is.
        batches: of training images and their labels.

    Raises:
        UserError: the network or the images do not allow it.
    """
    needing = [name for name in methods if name in CALIBRATED]
    if not needing:
        return None
    try:
        return calibrate(model, batches, may_guess=True)
    except ValueError as error:
        raise UserError(f"--methods: {listing(needing)}: {error} Or leave them out.") from error


def judge_methods(
    methods: Sequence[str],
    model: nn.Module,
    calibration: Calibration | None,
    images: Images,
    order: Sequence[Tensor],
    *,
    dataset: Dataset,
    settings: Settings,
    advance: Callable[[float, str], None],
) -> Iterator[Measurement]:
    """Measure the ``accuracy`` of each way to adapt, as subjects, on a stream that all of them see alike.

    Args:
        methods: names of :data:`ADAPTATIONS`.
        calibration: of ``model``, as :func:`calibrated` gives it for these methods.
        advance: receives what share of the methods is done.

    The rest is as for :func:`stream_accuracy`.
    """
    for number, method in enumerate(methods, start=1):
        adaptation = ADAPTATIONS[method](cast(Calibration, calibration))  # None is for those that do not look at it
        accuracy = stream_accuracy(adaptation, model, images, order, dataset=dataset, settings=settings)
        yield Measurement(subject=method, quantity="accuracy", value=accuracy)
        advance(number / len(methods), "")


def stream_accuracy(
    adaptation: Adaptation,
    model: nn.Module,
    images: Images,
    order: Sequence[Tensor],
    *,
    dataset: Dataset,
    settings: Settings,
) -> float:
    """Give the share of a stream's images that are predicted right, each batch before the next is seen.

    Args:
        adaptation: forgets what it has seen before.
        model: stays as it is.
        images: what the stream shows.
        order: its batches, as indices into ``images``.
        dataset: whose mean and std normalise the images.
        settings: device and precision of the forwards.

    Raises:
        ValueError: the stream has no images.
    """
    count = sum(len(chosen) for chosen in order)
    if count == 0:
        raise ValueError("stream_accuracy: a stream must have images, got none.")
    adaptation.reset()
    hits = torch.zeros((), dtype=torch.int64, device=settings.device)
    for chosen in order:
        shown = take(images, chosen)
        ((x, labels),) = evaluation_batches(shown, dataset=dataset, batch_size=len(shown), device=settings.device)
        with autocast(settings):
            logits = adaptation.predict(model, x)
        hits += (logits.argmax(1) == labels).sum()
    return int(hits) / count

"""Accuracy of adaptation methods on a stream."""

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
"""Methods that need a calibration, besides the running statistics."""
CLASSES = 3
"""Least number of classes for a calibration, which compares batches of one, two and all classes."""


def check_methods(names: Sequence[str]) -> None:
    """Refuse an unknown adaptation method.

    Raises:
        UserError: a name is unknown.
    """
    check_known("--methods", names, ADAPTATIONS, what="way to adapt")


def check_possible(names: Sequence[str], dataset: Dataset) -> None:
    """Refuse methods if none of them can be calibrated.

    Raises:
        UserError: the data have too few classes.
    """
    if not _possible(names, dataset):
        found = len(dataset.classes)
        raise UserError(f"--methods: {listing(names)} need images of {CLASSES} classes, got {found}. Add others.")


def _possible(names: Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    return tuple(name for name in names if len(dataset.classes) >= CLASSES or name not in CALIBRATED)


def without_uncalibrated(names: Sequence[str], dataset: Dataset, display: Display) -> tuple[str, ...]:
    """Drop the methods whose calibration needs more classes than there are, with a message."""
    kept = _possible(names, dataset)
    absent = listing([name for name in names if name not in kept])
    if absent:
        display.message(f"left out, since their calibration needs images of {CLASSES} classes: {absent}")
    return kept


def left_out_methods(record: Record) -> str:
    """Name in a report the methods that were left out; see :func:`without_uncalibrated`."""
    classes = record.resolved["classes"]
    absent = [method_label(name) for name in record.config["methods"] if name in CALIBRATED]
    if not absent or (classes if isinstance(classes, int) else len(classes)) >= CLASSES:
        return ""
    return f" Left out, since their calibration needs images of {CLASSES} classes: {listing(absent)}."


def calibration_images(dataset: Dataset, count: int, *, batch_size: int) -> Images:
    """Return this many training images, or all; drops an image that would be alone in a batch."""
    images = some(dataset.train, count)
    return first(images, len(images) - 1) if len(images) % batch_size == 1 else images


def calibrated(
    methods: Sequence[str], model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Calibration | None:
    """Calibrate the methods on a network, which may not have learned; None if no method needs it.

    Args:
        methods: names of :data:`ADAPTATIONS`.
        model: left unchanged.
        batches: training images and their labels.

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
    """Measure the ``accuracy`` of each method, as subjects, on the same stream.

    Args:
        methods: names of :data:`ADAPTATIONS`.
        calibration: what :func:`calibrated` returned for ``model`` and these methods.
        advance: receives the share of the methods that is done.

    The other arguments are those of :func:`stream_accuracy`.
    """
    for number, method in enumerate(methods, start=1):
        adaptation = ADAPTATIONS[method](cast(Calibration, calibration))  # None only for methods that do not use it
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
    """Return the share of a stream's images predicted correctly, each batch before the next is seen.

    Args:
        adaptation: reset first.
        model: left unchanged.
        images: images of the stream.
        order: its batches, as indices into ``images``.
        dataset: its mean and std normalise the images.
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

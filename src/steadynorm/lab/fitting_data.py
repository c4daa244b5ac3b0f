"""Refuse data that do not allow an experiment, before anything is written; warn about data that show little."""

from __future__ import annotations

from typing import Any

from steadynorm.lab.data import Dataset
from steadynorm.lab.workers import number_of_workers
from steadynorm.reporting.chance import chance_of
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.numbers import percent
from steadynorm.reporting.progress import Display
from steadynorm.reporting.records import Record

__all__ = ["check_batches", "check_data", "tell_limits"]


def check_data(config: Any, dataset: Dataset) -> None:  # noqa: ANN401 (any experiment's dataclass)
    """Refuse a data set that is too small for the experiment.

    Args:
        config: complete configuration of the experiment.
        dataset: its data.

    Raises:
        UserError: a batch is larger than the training part, or a part has one class only or is too small to share.
    """
    if getattr(config, "checkpoint", None) is None:  # with a checkpoint, nothing is trained
        sizes = getattr(config, "batch_size", None) or ()
        check_batches(sizes, len(dataset.train), together=getattr(config, "accumulate", 1))
    for images, of in ((dataset.train, "training"), (dataset.validation, "validation")):
        if int(images.labels.bincount().count_nonzero()) < 2:
            raise UserError(
                f"--data: {of} images must be of two classes at least, got {len(images):,} of one class. "
                "Take more of them, or others."
            )
    images, workers = dataset.validation, number_of_workers()
    if len(images) < workers:
        raise UserError(
            f"--data: the {workers} workers share the validation images, got {len(images)}. Start fewer workers."
        )


def check_batches(sizes: int | tuple[int, ...], images: int, *, together: int = 1, of: str = "training images") -> None:
    """Refuse a step that needs more images than there are.

    Args:
        sizes: batch sizes.
        images: number of images.
        together: number of batches in a step.
        of: what the images are, for the message.

    Raises:
        UserError: a batch, or all batches of a step together, need more images.
    """
    for size in (sizes,) if isinstance(sizes, int) else sizes:
        if size * together > images:
            step = f"{size:,}" if together == 1 else f"{together} x {size:,}"
            raise UserError(
                f"--batch-size: a step of {step} images needs as many, got {images:,} {of}. Give at most "
                f"{max(1, images // together):,}."
            )


def tell_limits(record: Record, display: Display) -> None:
    """Warn if the validation images are too few or too unequal to distinguish any network from guessing."""
    chance = chance_of(record)
    if not chance.is_beatable:
        display.message(
            f"{chance.images:,} validation images, {percent(chance.share)} of them of one class, are too few to tell a "
            "network that is always right from guessing: hold out more"
        )

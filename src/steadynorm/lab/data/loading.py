"""Load data sets by name, and user data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from steadynorm.lab.data.images import Dataset
from steadynorm.lab.data.parts import Reading
from steadynorm.lab.data.shapes import make_shapes
from steadynorm.reporting.failure import UserError

__all__ = ["DATASETS", "check_data_dir", "load_dataset"]

DATASETS = ("shapes", "digits", "cifar10", "cifar100", "mnist", "fashion_mnist")
"""Names that :func:`load_dataset` knows."""
EMBEDDED = {"shapes": "cifar10", "digits": "mnist"}
"""Data sets without files -> the data set to name if a directory is given."""


def _silent(message: str) -> None:
    """Ignore a message."""


def check_data_dir(name: str, data_dir: Path | None) -> None:
    """Refuse a directory for a data set without files.

    Raises:
        UserError: a directory is given.
    """
    if name in EMBEDDED and data_dir is not None:
        other = EMBEDDED[name]
        raise UserError(f"--data-dir: is read with --data {other} only. Add --data {other}.")
    if name not in DATASETS and data_dir is not None:
        raise UserError(f"--data-dir: is for named data sets, and {name} is a path. Drop it.")


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    columns: tuple[str, str] | None = None,
    image_size: Sequence[int] | None = None,
    validation_share: float | None = None,
    progress: Callable[[str], None] = _silent,
) -> Dataset:
    """Load the training and validation images of a data set.

    Args:
        name: one of :data:`DATASETS`, or user data in one of :data:`steadynorm.lab.data.layouts.LAYOUTS`.
            ``shapes`` is drawn by the package; ``cifar10`` is read from ``data_dir`` or from the Hugging Face hub, and
            its decoded images are cached; ``digits`` comes with scikit-learn; ``mnist`` is read from ``data_dir``.
        data_dir: directory of a named data set.
        columns: names of the images and of the labels, in a table or an archive of arrays.
        image_size: height and width that images are resized and cut to, or one number for both.
        validation_share: share of the images to hold out if the data have no validation part; 0.1 if None.
        progress: receives lines about slow steps, guesses and omissions.

    Raises:
        UserError: the data set is unknown, missing or damaged, or an argument has no effect.
    """
    reading = Reading(
        columns=None if columns is None else (columns[0], columns[1]),
        image_size=both_sides(image_size),
        validation_share=validation_share,
        progress=progress,
    )
    check_data_dir(name, data_dir)
    if name in DATASETS:
        check_unused(name, columns=columns if name in EMBEDDED else None, validation_share=validation_share)
        dataset = _load_named(name, data_dir, reading)
        if reading.image_size in (None, dataset.image_size):
            return dataset
        from steadynorm.lab.data.assembly import resized  # needs pillow

        return resized(dataset, reading)
    from steadynorm.lab.data.assembly import assemble
    from steadynorm.lab.data.layouts import open_parts

    return assemble(open_parts(name, reading, names=DATASETS), reading)


def both_sides(size: Sequence[int] | None) -> tuple[int, int] | None:
    """Return height and width from one or two numbers.

    Raises:
        UserError: there are not one or two numbers, or one is below 1.
    """
    if size is None:
        return None
    if len(size) not in (1, 2) or min(size) < 1:
        raise UserError(
            f"--image-size: must be height and width, or one number for both, got {' '.join(map(str, size)) or 'none'}."
        )
    return size[0], size[-1]


def check_unused(name: str, **given: object) -> None:
    """Refuse flags for user data if a data set is named.

    Raises:
        UserError: such a flag is given.
    """
    for flag, value in given.items():
        if value is not None:
            raise UserError(f"--{flag.replace('_', '-')}: is for your own data, not for {name}. Drop it.")


def _load_named(name: str, data_dir: Path | None, reading: Reading) -> Dataset:
    if name == "shapes":
        return make_shapes()
    if name == "digits":
        from steadynorm.lab.data.digits import make_digits  # needs scikit-learn

        return make_digits()
    from steadynorm.lab.data.named import load_named  # needs pillow

    return load_named(name, data_dir, reading)

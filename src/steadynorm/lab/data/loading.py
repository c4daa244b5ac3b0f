"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from steadynorm.lab.data.images import Dataset
from steadynorm.lab.data.shapes import make_shapes
from steadynorm.reporting.failure import UserError

__all__ = ["DATASETS", "check_data_dir", "load_dataset"]

DATASETS = ("shapes", "cifar10", "digits", "mnist")
"""Names that :func:`load_dataset` knows."""
EMBEDDED = {"shapes": "cifar10", "digits": "mnist"}
"""Data sets that are in no directory -> what is given in their place where there is one."""


def _silent(message: str) -> None:
    """Say nothing."""


def check_data_dir(name: str, data_dir: Path | None) -> None:
    """Refuse a directory for a data set that is read from none.

    Raises:
        UserError: there is one.
    """
    if name in EMBEDDED and data_dir is not None:
        other = EMBEDDED[name]
        raise UserError(f"--data-dir: is read with --data {other} only. Add --data {other}.")


def load_dataset(name: str, *, data_dir: Path | None = None, progress: Callable[[str], None] = _silent) -> Dataset:
    """Load both splits of a data set into memory.

    Args:
        name: one of :data:`DATASETS`. ``shapes`` is drawn by the package; ``cifar10`` is read from
            ``data_dir`` or from the Hugging Face hub, and its decoded images are cached; ``digits`` comes with
            scikit-learn; ``mnist`` is read from ``data_dir``.
        data_dir: where CIFAR-10 lies: Parquet files, or the directory ``cifar-10-batches-py``. Or MNIST's four files.
        progress: told, a line at a time, what takes long and what went wrong without being fatal.

    Raises:
        UserError: the name is unknown, the data cannot be had or are damaged, or ``data_dir`` would not be read.
    """
    check_data_dir(name, data_dir)
    if name == "shapes":
        return make_shapes()
    if name == "cifar10":
        from steadynorm.lab.data.cifar10 import load_cifar10  # needs pyarrow and pillow

        return load_cifar10(data_dir, progress)
    if name == "digits":
        from steadynorm.lab.data.digits import make_digits  # needs scikit-learn

        return make_digits()
    if name == "mnist":
        from steadynorm.lab.data.mnist import load_mnist

        return load_mnist(data_dir, progress)
    raise UserError(f"data: the data set must be one of {', '.join(DATASETS)}, got {name!r}. Give one of these names.")

"""CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST: from files in any layout, or from the Hugging Face hub.

Sources: Krizhevsky 2009, "Learning multiple layers of features from tiny images"; LeCun, Bottou, Bengio and Haffner
1998, "Gradient-based learning applied to document recognition"; Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from steadynorm.lab.data.assembly import assemble
from steadynorm.lab.data.images import Dataset
from steadynorm.lab.data.layouts import layout_of
from steadynorm.lab.data.parts import Parts, Reading
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.words import counted

__all__ = ["KNOWN", "load_named", "parts_of_named"]


@dataclass(frozen=True, kw_only=True)
class Known:
    """A well-known data set."""

    title: str
    repository: str
    """Repository on the Hugging Face hub."""
    folder: str
    """Folder in the repository."""
    places: tuple[str, ...]
    """Possible places of its files in a directory; the first existing one is used."""
    form: tuple[int, int, int]
    """Height, width and channels."""
    counts: tuple[int, int]
    """Number of images for training and for test."""
    classes: tuple[str, ...] | None = None
    """Names of the classes; None if the files name them."""
    scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and standard deviation by channel; None if they are measured."""


KNOWN = {
    "cifar10": Known(
        title="CIFAR-10",
        repository="uoft-cs/cifar10",
        folder="plain_text",
        places=("cifar-10-batches-py", "plain_text", "cifar-10-python.tar.gz", "cifar10", "", "data"),
        form=(32, 32, 3),
        counts=(50_000, 10_000),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        scale=((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ),
    "cifar100": Known(
        title="CIFAR-100",
        repository="uoft-cs/cifar100",
        folder="cifar100",
        places=("cifar-100-python", "cifar-100-python.tar.gz", "cifar100", "", "data"),
        form=(32, 32, 3),
        counts=(50_000, 10_000),
    ),
    "mnist": Known(
        title="MNIST",
        repository="ylecun/mnist",
        folder="mnist",
        places=("MNIST", "mnist", "mnist.npz", "", "data"),
        form=(28, 28, 1),
        counts=(60_000, 10_000),
        classes=tuple("0123456789"),
        scale=((0.1307,), (0.3081,)),
    ),
    "fashion_mnist": Known(
        title="Fashion-MNIST",
        repository="zalando-datasets/fashion_mnist",
        folder="fashion_mnist",
        places=("FashionMNIST", "fashion_mnist", "fashion-mnist", "fashion_mnist.npz", "", "data"),
        form=(28, 28, 1),
        counts=(60_000, 10_000),
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
    ),
}


def load_named(name: str, data_dir: Path | None, reading: Reading) -> Dataset:
    """Load a data set of :data:`KNOWN`.

    Args:
        name: name of the data set.
        data_dir: a directory with it in any layout, or that layout itself. None downloads it from the Hugging Face hub,
            whose library caches it.
        reading: receives notes about slow steps.

    Raises:
        UserError: the data set is not available, or the files hold another one.
    """
    dataset = assemble(parts_of_named(name, data_dir, reading), reading)
    known = KNOWN[name]
    height, width, channels = known.form
    if reading.image_size is None and (*dataset.image_size, dataset.channels) != known.form:
        raise UserError(
            f"{data_dir or known.repository}: {known.title} must have images of {height} x {width} pixels with "
            f"{counted(channels, 'channel')}, got {' x '.join(map(str, dataset.image_size))} with {dataset.channels}."
        )
    return dataset


def parts_of_named(name: str, data_dir: Path | None, reading: Reading) -> Parts:
    """Find the files of a data set of :data:`KNOWN`, and check the number of images.

    Raises:
        UserError: the files are not available, or hold another data set.
    """
    known = KNOWN[name]
    if data_dir is None:
        from steadynorm.lab.data.hub import download
        from steadynorm.lab.data.parquet import parts_of_files

        parts = parts_of_files(name, download(known.repository, known.folder, reading), reading)
    else:
        parts = _in_directory(known, name, data_dir, reading)
    found = (parts.train.count, 0 if parts.validation is None else parts.validation.count)
    for word, must, count in zip(("train", "test"), known.counts, found, strict=True):
        if count != must:
            raise UserError(
                f"{data_dir or known.repository}: the {word} split of {known.title} must have {must:,} images, got "
                f"{count:,}. Complete its files, or download them again."
            )
    return dataclasses.replace(parts, name=name, classes=known.classes or parts.classes, scale=known.scale)


def _in_directory(known: Known, name: str, data_dir: Path, reading: Reading) -> Parts:
    if not data_dir.exists():
        raise UserError(
            f"--data-dir: must be a directory, got {data_dir}. Give one that holds {known.title}, or go on with "
            "--data shapes."
        )
    for place in (data_dir / each for each in known.places):
        layout = layout_of(str(place)) if place.exists() else None
        if layout is not None:
            return layout.read(str(place), dataclasses.replace(reading, flag="--data-dir"))
    raise UserError(
        f"--data-dir: {data_dir}: must hold {known.title} as it is published, as Parquet or as .npz, got none of them. "
        "Complete it, or leave --data-dir out to download."
    )

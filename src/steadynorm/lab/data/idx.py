"""Files in the format IDX, in which MNIST and Fashion-MNIST are published: images and labels, for training and test.

Source: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition"; the format is
described on the page of the same authors.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steadynorm.lab.data.arrays import part_of_arrays
from steadynorm.lab.data.parts import Part, Parts, Reading
from steadynorm.reporting.failure import UserError

__all__ = ["read", "recognises"]

SPLITS = ("train", "t10k")
FOLDERS = ("", "raw")  # the last one is torchvision's
NAMES = {"images": ("images-idx3-ubyte", "images.idx3-ubyte"), "labels": ("labels-idx1-ubyte", "labels.idx1-ubyte")}
IMAGES, LABELS = 2051, 2049  # magic number at the beginning of a file
MOST_BYTES = 2**30  # 23 times MNIST's training images: the limit of what is read, even if a file claims more
DIMENSIONS = {IMAGES: 3, LABELS: 1}


def recognises(data: str) -> bool:
    """Whether this is a directory with training images in this format, or its folder ``raw`` is."""
    return Path(data).is_dir() and any(_places(Path(data), "train", "images"))


def read(data: str, reading: Reading) -> Parts:
    """Read all files.

    Args:
        data: a directory with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and, where there are test
            images, the two ``t10k-`` files, each as it is or with ``.gz`` after its name; in it or in ``raw``.
        reading: receives a note about what is read.

    Raises:
        UserError: a file is absent, cut off, or holds something else.
    """
    place = Path(data)
    parts = {word: _part(place, word, reading) for word in SPLITS if word == "train" or _places(place, word, "images")}
    return Parts(name=place.resolve().name, train=parts["train"], validation=parts.get("t10k"))


def _part(place: Path, word: str, reading: Reading) -> Part:
    reading.progress(f"reading the {word} images in {place}")
    path = _find(place, word, "images", reading.flag)
    labels = _read_idx(_find(place, word, "labels", reading.flag), LABELS)
    return part_of_arrays(_read_idx(path, IMAGES), labels, reading, what=str(path))


def _places(place: Path, word: str, what: str) -> list[Path]:
    names = [f"{word}-{name}{ending}" for name in NAMES[what] for ending in ("", ".gz")]
    return [path for folder in FOLDERS for name in names if (path := place / folder / name).is_file()]


def _find(place: Path, word: str, what: str, flag: str) -> Path:
    if found := _places(place, word, what):
        return found[0]
    name = f"{word}-{NAMES[what][0]}"
    raise UserError(f"{flag}: {place}: must hold {name} or {name}.gz, got neither. Download it.")


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """Read an array of bytes: a magic number, one size for each dimension, all of four bytes, and the array."""
    start = 4 * (1 + DIMENSIONS[magic])
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(start)
            if int.from_bytes(head[:4]) != magic:
                raise UserError(
                    f"{path}: must begin with the number {magic}, got {int.from_bytes(head[:4])}. "
                    "Give the files as they are published."
                )
            shape = tuple(int.from_bytes(head[place : place + 4]) for place in range(4, start, 4))
            size = math.prod(shape)
            if size > MOST_BYTES:
                raise UserError(
                    f"{path}: must hold at most {MOST_BYTES:,} bytes, says {size:,}. Give the published files."
                )
            content = file.read(size + 1)  # a compressed file is unpacked only up to the size that it declares
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: must be a complete file, got {error}. Download it again.") from error
    if len(head) != start or len(content) != size:
        found = "more" if len(content) > size else f"{len(head) + len(content):,}"
        raise UserError(f"{path}: must hold {start + size:,} bytes, got {found}. Download it again.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()

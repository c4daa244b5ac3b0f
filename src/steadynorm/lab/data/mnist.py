"""MNIST: 70,000 handwritten digits of 28 x 28 gray pixels, from its four files.

Source: LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition"; the files'
format, IDX, is described on the same page.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from steadynorm.lab.data.images import CLASS_COUNT, Dataset, Images
from steadynorm.reporting.failure import UserError

__all__ = ["load_mnist"]

SIZE = 28
SPLITS = ("train", "t10k")
MEAN, STD = (0.1307,), (0.3081,)  # of the training images
FOLDERS = ("", "raw", "MNIST/raw")  # the last two as torchvision lays it out
IMAGES, LABELS = 2051, 2049  # what a file begins with
MOST_BYTES = 2**30  # 23 times the training images: no more is taken into memory, whatever a file says
DIMENSIONS = {IMAGES: 3, LABELS: 1}


def load_mnist(data_dir: Path | None, progress: Callable[[str], None]) -> Dataset:
    """Read MNIST.

    Args:
        data_dir: a directory with ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two ``t10k-`` files,
            each as it is or with ``.gz`` after its name; in it, in ``raw`` or in ``MNIST/raw``.
        progress: told what is read, a line at a time.

    Raises:
        UserError: a file is absent, cut off, or holds something else.
    """
    if data_dir is None or not data_dir.is_dir():
        raise UserError(
            f"--data-dir: must be a directory with the four files of MNIST, got {data_dir}. "
            "Give one, or go on with --data digits."
        )
    train, test = (_read_split(data_dir, word, progress) for word in SPLITS)
    return Dataset(name="mnist", train=train, validation=test, classes=tuple("0123456789"), mean=MEAN, std=STD)


def _read_split(data_dir: Path, word: str, progress: Callable[[str], None]) -> Images:
    progress(f"mnist: reading the {word} images in {data_dir}")
    pixels_path = _find(data_dir, f"{word}-images-idx3-ubyte")
    labels_path = _find(data_dir, f"{word}-labels-idx1-ubyte")
    pixels = _read_idx(pixels_path, IMAGES)
    labels = _read_idx(labels_path, LABELS)
    if pixels.shape[1:] != (SIZE, SIZE) or not len(pixels):
        raise UserError(
            f"{pixels_path}: must hold images of {SIZE} x {SIZE} pixels, got shape {pixels.shape}. Download it again."
        )
    if len(labels) != len(pixels):
        raise UserError(
            f"{labels_path}: must hold a label for each of {len(pixels):,} images, got {len(labels):,}. "
            "Download both files again."
        )
    if labels.max() >= CLASS_COUNT:
        raise UserError(f"{labels_path}: labels must be 0 to {CLASS_COUNT - 1}, got {labels.max()}. Download it again.")
    return Images(pixels=torch.from_numpy(pixels).unsqueeze(1), labels=torch.from_numpy(labels.astype(np.int64)))


def _find(data_dir: Path, name: str) -> Path:
    places = [data_dir / folder / f"{name}{ending}" for folder in FOLDERS for ending in ("", ".gz")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"--data-dir {data_dir}: must hold {name} or {name}.gz, got neither. Download it.")
    return found


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """Read an array of bytes: a magic number, one size for each dimension, all of four bytes, and the array."""
    start = 4 * (1 + DIMENSIONS[magic])
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(start)
            if int.from_bytes(head[:4]) != magic:
                raise UserError(
                    f"{path}: must begin with the number {magic}, got {int.from_bytes(head[:4])}. "
                    "Give the files of MNIST."
                )
            shape = tuple(int.from_bytes(head[place : place + 4]) for place in range(4, start, 4))
            size = math.prod(shape)
            if size > MOST_BYTES:
                raise UserError(
                    f"{path}: must hold at most {MOST_BYTES:,} bytes, says {size:,}. Give the files of MNIST."
                )
            content = file.read(size + 1)  # of a compressed file no more is unpacked than it says to hold
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: must be a whole file, got {error}. Download it again.") from error
    if len(head) != start or len(content) != size:
        found = "more" if len(content) > size else f"{len(head) + len(content):,}"
        raise UserError(f"{path}: must hold {start + size:,} bytes, got {found}. Download it again.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()

"""A data set found on the disk or given by a function, before its images are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadynorm.lab.data.images import Images

__all__ = ["Part", "Parts", "Reading", "part_of_images"]


def _silent(message: str) -> None:
    """Ignore a message."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The user's settings for reading data.

    Args:
        columns: names of the images and of the labels, in a table or an archive of arrays; None finds them.
        image_size: height and width of the images: they are resized until they cover it, and their centre is cut out;
            None keeps their own size, which must be the same for all.
        validation_share: share of the images to hold out if the data have no validation part.
        progress: receives lines about slow steps, guesses and omissions.
        flag: flag that gave the data, for messages.
        size_flag: flag that gives their size.
    """

    columns: tuple[str, str] | None = None
    image_size: tuple[int, int] | None = None
    validation_share: float | None = None
    progress: Callable[[str], None] = _silent
    flag: str = "--data"
    size_flag: str = "--image-size"


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Images of one part of a data set, and their labels.

    Args:
        count: number of images.
        labels: as they were found, whole numbers or text of shape (N,); None where there are none.
        images: gives the images of some rows, int64 and rising: the path of an image file, its bytes, bytes of pixels
            as an array of shape (H, W, C), or an image of Pillow's.
        called: names a row, for messages.
        sources: files that the images and labels are in.
        are_files: whether each image is a file of its own, as photographs of several sizes often are.
        pixels: all of them, where they are in memory already: uint8 of shape (N, H, W, C).
    """

    count: int
    labels: NDArray[Any] | None
    images: Callable[[NDArray[np.int64]], Iterator[Any]]
    called: Callable[[int], str]
    sources: tuple[Path, ...] = ()
    are_files: bool = False
    pixels: NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """A data set of one part or two.

    Args:
        name: in a word.
        train: the only part where there is no other.
        validation: None where there is none.
        classes: what each label means; None where nothing says it.
        scale: mean and standard deviation of each channel, where they are given with the data.
    """

    name: str
    train: Part
    validation: Part | None = None
    classes: tuple[str, ...] | None = None
    scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def part_of_images(images: Images, *, what: str) -> Part:
    """Make a part of images that are in memory."""
    rows = images.rows.numpy()
    return Part(
        count=len(rows),
        labels=images.labels.numpy(),
        images=lambda chosen: (rows[row] for row in chosen.tolist()),
        called=lambda row: f"{what}: row {row}",
        pixels=rows,
    )

"""Labelled images in memory: whole splits as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steadynorm.lab.data.storage import gathered

__all__ = [
    "CLASS_COUNT",
    "SIZE",
    "Dataset",
    "Images",
    "chosen_by_class",
    "first",
    "hold_out",
    "random_stream",
    "some",
    "take",
]

SIZE = 32
"""Height and width, in pixels, of the images of CIFAR-10 and of the embedded shapes."""
CLASS_COUNT = 10
"""Number of classes of CIFAR-10 and of the embedded shapes."""

# Set apart from every epoch number, so that a held-out split never shares its random numbers with an epoch.
_HOLD_OUT_STREAM = 2**64 - 1
_SOME_STREAM = 2**64 - 4


@dataclass(frozen=True, kw_only=True)
class Images:
    """One split of a data set.

    Raises:
        ValueError: the tensors do not fit together.
    """

    pixels: Tensor
    """uint8, shape (N, C, H, W), stored channels-last (``torch.channels_last``)."""
    labels: Tensor
    """int64, shape (N,): indices into ``Dataset.classes``."""

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.dim() != 4:
            raise ValueError(
                "Images: pixels must be uint8 of shape (N, C, H, W), "
                f"got {self.pixels.dtype} {tuple(self.pixels.shape)}."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(
                f"Images: labels must be int64 of shape ({len(self.pixels)},), "
                f"got {self.labels.dtype} {tuple(self.labels.shape)}."
            )

    @classmethod
    def of_rows(cls, rows: Tensor, labels: Tensor) -> Images:
        """Hold pixels that lie in memory row by row, shape (N, H, W, C)."""
        return cls(pixels=rows.permute(0, 3, 1, 2), labels=labels)

    @property
    def rows(self) -> Tensor:
        """The pixels as they lie in memory, shape (N, H, W, C)."""
        return self.pixels.permute(0, 2, 3, 1)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Two splits, their classes and their scale."""

    name: str
    train: Images
    validation: Images
    classes: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    mean: tuple[float, ...]
    """Per channel, in units where a full byte is 1: subtracted from the pixels."""
    std: tuple[float, ...]
    """Per channel, in the same units: what the centred pixels are divided by."""

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.train.pixels.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self.train.pixels.shape[2], self.train.pixels.shape[3]


def first(images: Images, count: int) -> Images:
    """Return the first ``count`` images, or all if there are fewer."""
    return Images(pixels=images.pixels[:count], labels=images.labels[:count])


def some(images: Images, count: int) -> Images:
    """Return ``count`` images with the class frequencies of all, or all if there are fewer.

    These are the first ones if the classes are mixed. If images come class by class, as from folders, they are drawn at
    random with a fixed seed, and keep their order.
    """
    if count >= len(images) or _is_mixed(images.labels):
        return first(images, count)
    shares, _ = _shares_of_classes(images.labels.numpy(), random_stream(0, _SOME_STREAM))
    return take(images, torch.from_numpy(np.sort(np.argsort(shares)[:count])))


def _shares_of_classes(labels: NDArray[np.int64], random: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any]]:
    """Put each class in a random order.

    Returns:
        for each image, the share of its class that comes up to it, so that the lowest shares draw from all classes
        equally; and which images are the last of their class.
    """
    draws = random.random(len(labels))
    by_class, counts = np.lexsort((draws, labels)), np.bincount(labels)
    rank = np.empty(len(labels))
    rank[by_class] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[by_class]]
    return (rank + draws) / counts[labels], rank == counts[labels] - 1


def _is_mixed(labels: Tensor) -> bool:
    """Whether the class changes from one image to the next at least half as often as in a random order."""
    changes = int((labels.diff() != 0).sum())
    same = (labels.bincount().double() / len(labels)).square().sum().item()
    return changes >= 0.5 * (1 - same) * (len(labels) - 1)


def take(images: Images, rows: Tensor) -> Images:
    """Return the images at these indices, int64 of shape (M,), in their order."""
    return Images.of_rows(gathered(images.rows, rows), images.labels[rows])  # each image stays one block of memory


def hold_out(images: Images, *, fraction: float, seed: int) -> tuple[Images, Images]:
    """Split at random into two disjoint parts that together hold every image once.

    Args:
        images: left unchanged.
        fraction: share of the images in the second part, strictly between 0 and 1; rounded to a whole number
            of images, and both parts hold at least one.
        seed: decides which images; the same seed always holds out the same ones.

    Returns:
        The rest and the held-out images, each in the order of ``images``.

    Raises:
        ValueError: the fraction leaves a part empty, or the seed is negative.
    """
    count, held = len(images), round(len(images) * fraction)
    if not (0 < fraction < 1 and 0 < held < count):
        raise ValueError(
            f"hold_out: fraction must leave images in both parts, got {fraction} of {count} images. "
            "Choose a fraction such as 0.1."
        )
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[torch.from_numpy(random_stream(seed, _HOLD_OUT_STREAM).permutation(count)[:held])] = True
    return take(images, (~chosen).nonzero()[:, 0]), take(images, chosen.nonzero()[:, 0])


def chosen_by_class(
    labels: NDArray[np.int64], *, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose at random a share of every class, rounded to whole images.

    Args:
        labels: shape (N,), numbers of classes.
        share: of the images that are held out; rounded to a whole number of all of them.
        seed: decides which images.

    Returns:
        the rows of the rest, in which every class keeps an image if possible, and the rows held out.
    """
    shares, is_last = _shares_of_classes(labels, random_stream(seed, _HOLD_OUT_STREAM))
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.argsort(shares + is_last)[: round(len(labels) * share)]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def random_stream(seed: int, epoch: int) -> np.random.Generator:
    """Random numbers that belong to one pair of seed and epoch.

    The pair is the 128-bit key of a Philox generator, whose streams differ whenever their keys do. (PyTorch's
    own CPU generator keeps only 32 bits of its seed, so pairs mixed into one seed could meet.)

    Raises:
        ValueError: a number does not fit into 64 bits without a sign.
    """
    if not (0 <= seed < 2**64 and 0 <= epoch < 2**64):
        raise ValueError(f"random_stream: seed and epoch must be in [0, 2**64), got {seed} and {epoch}.")
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))

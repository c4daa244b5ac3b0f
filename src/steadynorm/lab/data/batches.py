"""Batches cut from images in memory: shuffled, augmented and normalised in bulk, without worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steadynorm.lab.data.images import Dataset, Images, random_stream

__all__ = ["Augmentation", "batches", "evaluation_batches"]

Augmentation = Literal["none", "crop-flip"]
PADDING = 4
"""Pixels of black border on each side before the random crop."""


def batches(
    images: Images,
    *,
    dataset: Dataset,
    batch_size: int,
    seed: int,
    epoch: int,
    augment: Augmentation,
    device: torch.device,
    part: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of training batches.

    Order and augmentation depend on ``seed`` and ``epoch`` alone. An incomplete last batch is dropped,
    because its statistics would be noisier than those of the other batches; other images are left out in the
    next epoch. It is kept if it is the only batch.

    Args:
        images: what to train on; copied to ``device`` as bytes when the epoch begins, or batch by batch if they
            would fill a GPU.
        dataset: where the images come from: its mean and std normalise them.
        batch_size: images in a batch, at least 1.
        seed: at least 0.
        epoch: at least 0.
        augment: ``crop-flip`` pads every image with 4 black pixels on each side, cuts the original size out
            at a random place and mirrors it in half of the cases.
        device: where the batches are made.
        part: which part of each batch to give, from 0, and of how many parts, all of one size: workers that give the
            same other arguments share the batches that one would have. What cannot be shared evenly is left out.

    Returns:
        Pairs of images, float32, shape (B, C, H, W), channels-last, ``(pixel / 255 - mean) / std``, and
        labels, int64, shape (B,).

    Raises:
        ValueError: an argument is outside its range.
    """
    if augment not in get_args(Augmentation):
        raise ValueError(f"batches: augment must be one of {get_args(Augmentation)}, got {augment!r}.")
    _check_batch_size(batch_size)
    number, parts = part
    if not (0 <= number < parts and min(batch_size, len(images)) >= parts):
        raise ValueError(
            f"batches: part must be one of the batch, got part {number} of {parts} of {min(batch_size, len(images))} "
            "images."
        )
    plan = _plan(len(images), batch_size, random_stream(seed, epoch))
    return _training(images, dataset, batch_size, device, plan if augment == "crop-flip" else plan[:1], part)


def evaluation_batches(
    images: Images, *, dataset: Dataset, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every image once, in order and unaugmented; the last batch may be smaller.

    Returns:
        Pairs as those of :func:`batches`.

    Raises:
        ValueError: the batch size is less than 1.
    """
    _check_batch_size(batch_size)
    return _in_order(images, dataset, batch_size, device)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batches: batch_size must be at least 1, got {batch_size}.")


def _plan(count: int, batch_size: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return the order of the images, and for each of them shift down, shift right and mirrored or not."""
    order = random.permutation(count)
    # Drawn for all images, so that the augmentation of an image does not depend on the batch size.
    moves = random.integers((0, 0, 0), (2 * PADDING + 1, 2 * PADDING + 1, 2), size=(count, 3))
    kept = count - count % batch_size if count > batch_size else count
    return torch.from_numpy(order[:kept]), torch.from_numpy(moves)


def _training(
    images: Images,
    dataset: Dataset,
    batch_size: int,
    device: torch.device,
    plan: tuple[Tensor, ...],
    part: tuple[int, int],
) -> Iterator[tuple[Tensor, Tensor]]:
    pixels, labels = _placed(images.rows, device), images.labels.to(device)
    order, *moves = (each.to(device) for each in plan)
    number, parts = part
    for together in torch.split(order, batch_size):
        size = len(together) // parts
        chosen = together[number * size : (number + 1) * size]
        batch = pixels[chosen.to(pixels.device)].to(device)
        if moves:
            batch = _crop_and_flip(batch, *moves[0][chosen].unbind(1))
        yield _normalised(batch, dataset), labels[chosen]


def _in_order(
    images: Images, dataset: Dataset, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    pixels, labels = _placed(images.rows, device), images.labels.to(device)
    for batch, targets in zip(torch.split(pixels, batch_size), torch.split(labels, batch_size), strict=True):
        yield _normalised(batch.to(device), dataset), targets


def _placed(rows: Tensor, device: torch.device) -> Tensor:
    """Copy images to a GPU if they take at most half of its free memory; else leave them where they are."""
    if device.type == "cuda" and rows.numel() > torch.cuda.mem_get_info(device)[0] // 2:
        return rows
    return rows.to(device).contiguous()


def _crop_and_flip(batch: Tensor, down: Tensor, right: Tensor, mirrored: Tensor) -> Tensor:
    """Shift each image of a (B, H, W, C) batch over its black border, and mirror some of them."""
    count, height, width, channels = batch.shape
    padded = F.pad(batch, (0, 0, PADDING, PADDING, PADDING, PADDING))
    image, row, column, byte = padded.stride()
    # All crops as one view, indexed by image and shift, so that whole rows of pixels are copied.
    crops = padded.as_strided(
        (count, 2 * PADDING + 1, 2 * PADDING + 1, height, width * channels), (image, row, column, row, byte)
    )
    cut = crops[torch.arange(count, device=batch.device), down, right].view(batch.shape)
    return torch.where(mirrored.bool()[:, None, None, None], cut.flip(2), cut)


def _normalised(batch: Tensor, dataset: Dataset) -> Tensor:
    """Turn (B, H, W, C) bytes into normalised numbers of shape (B, C, H, W), channels-last."""
    mean, std = (torch.tensor(values, device=batch.device) for values in (dataset.mean, dataset.std))
    return batch.float().sub_(255 * mean).div_(255 * std).permute(0, 3, 1, 2)

"""Images as arrays of numbers: their axes, and their conversion to bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadynorm.lab.data.parts import Part, Reading
from steadynorm.reporting.failure import UserError

__all__ = ["as_bytes", "as_labels", "as_rows", "part_of_arrays"]

CHANNELS = (1, 3)
_CHUNK = 2**26
"""Values checked at once."""


def part_of_arrays(images: NDArray[Any], labels: NDArray[Any] | None, reading: Reading, *, what: str) -> Part:
    """Make a part of a data set from its images and labels.

    Args:
        images: shape (N, H, W), (N, H, W, C) or (N, C, H, W) with one or three channels; bytes, or floats in [0, 1].
        labels: whole numbers or text, shape (N,) or (N, 1).
        reading: receives a note about conversions.
        what: name of the images, for messages.

    Raises:
        UserError: images or labels have another form.
    """
    rows = as_bytes(as_rows(images, what), reading, what)
    return Part(
        count=len(rows),
        labels=None if labels is None else as_labels(labels, len(rows), what),
        images=lambda chosen: (rows[row] for row in chosen.tolist()),
        called=lambda row: f"{what}: row {row}",
        pixels=rows,
    )


def as_rows(images: NDArray[Any], what: str) -> NDArray[Any]:
    """Put the channels last; shape (N, H, W, C).

    Raises:
        UserError: there are no images, or the axis of their channels cannot be determined.
    """
    shape = images.shape
    first, last = images.ndim == 4 and shape[1] in CHANNELS, images.ndim == 4 and shape[3] in CHANNELS
    if images.ndim == 4 and first and last and shape[1] != shape[3]:
        raise UserError(
            f"{what}: cannot tell which axis has the channels, got shape {shape}. Give the images as "
            "(N, H, W, C), with height and width above the number of channels."
        )
    if images.ndim == 3:
        images = images[..., None]
    elif last:
        pass
    elif first:
        images = np.moveaxis(images, 1, 3)
    else:
        raise UserError(
            f"{what}: must have shape (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 channels, got {shape}."
        )
    if 0 in images.shape:
        raise UserError(f"{what}: must hold images, got shape {shape}.")
    return images


def as_bytes(rows: NDArray[Any], reading: Reading, what: str) -> NDArray[np.uint8]:
    """Convert floats in [0, 1] to bytes; return bytes unchanged.

    Raises:
        UserError: the values are outside their range.
    """
    if rows.dtype == np.uint8:
        return rows
    if rows.dtype == np.bool_:
        return rows.view(np.uint8) * np.uint8(255)
    if rows.dtype.kind not in "fiu":
        raise UserError(f"{what}: must be bytes (uint8) or floats in [0, 1], got {rows.dtype}.")
    whole = rows.dtype.kind in "iu"
    most, words = (255, "whole numbers from 0 to 255") if whole else (1, "floats in [0, 1]")
    made = np.empty(rows.shape, dtype=np.uint8)
    step = max(1, _CHUNK // max(1, rows[0].size))
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        if not whole and len(broken := np.flatnonzero(~np.isfinite(some).reshape(len(some), -1).all(1))):
            raise UserError(f"{what}: row {start + broken[0]}: has NaN or infinite pixels. Leave such images out.")
        low, high = some.min(), some.max()
        if not (low >= 0 and high <= most):
            raise UserError(
                f"{what}: {rows.dtype} must be {words}, got {low:.4g} to {high:.4g}. "
                "Give pixels as bytes, not normalized."
            )
        made[start : start + step] = some if whole else np.rint(some.astype(np.float32) * 255)
    if not whole:
        reading.progress(f"{what}: {rows.dtype} in [0, 1], rounded to bytes of 256 shades")
    return made


def as_labels(labels: NDArray[Any], count: int, what: str) -> NDArray[Any]:
    """Check that there is a label for each image.

    Raises:
        UserError: there is not, or the labels are neither integers nor text.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (count,):
        hint = " These may be one-hot: give their argmax." if labels.ndim == 2 and len(labels) == count else ""
        raise UserError(f"{what}: must have one label for each of {count:,} images, got shape {labels.shape}.{hint}")
    if labels.dtype.kind not in "iuU":
        raise UserError(f"{what}: labels must be whole numbers or text, got {labels.dtype}.")
    return labels

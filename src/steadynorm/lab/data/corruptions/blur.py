"""Corruptions that mix each pixel with its neighbours; pixels as described in ``noise``.

Lengths in pixels are for images of 32 x 32. On larger ones they grow with the shorter side, so that a picture is
blurred as much whatever its resolution; on smaller ones they stay, because less than a pixel would blur nothing.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["defocus_blur", "gaussian_blur", "motion_blur", "zoom_blur"]

Array = NDArray[np.float64]

AS_ONE_MATRIX = 32 * 32
"""Pixels of an image up to which its zoom blur is one matrix, which has their square many entries."""


def defocus_blur(pixels: Array, random: np.random.Generator, radius: float, softness: float) -> Array:
    """Average over a disk of the radius given, at most 1.5 pixels, as a lens out of focus does.

    The disk is softened by a Gaussian of 3 x 3 pixels with standard deviation ``softness``; the image is
    continued by its mirror image, without its border doubled.
    """
    scale = _scale(pixels)
    radius, soft = radius * scale, round(scale)
    reach = 2 if soft == 1 else math.floor(radius) + 2 * soft  # so far the softened disk does not meet its border
    place = np.arange(-reach, reach + 1)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    weights = _gaussian(soft, softness * scale)
    softened = _weighted_neighbours(disk[None, :, :, None], np.outer(weights, weights), border="reflect")[0, :, :, 0]
    return _weighted_neighbours(pixels, softened / disk.sum(), border="reflect")


def gaussian_blur(pixels: Array, random: np.random.Generator, deviation: float) -> Array:
    """Average with Gaussian weights, cut off at four standard deviations; border pixels are continued."""
    deviation *= _scale(pixels)
    weights = _gaussian(int(4 * deviation + 0.5), deviation)
    down = _weighted_neighbours(pixels, weights[:, None], border="edge")
    return _weighted_neighbours(down, weights[None, :], border="edge")


def motion_blur(pixels: Array, random: np.random.Generator, radius: int, deviation: float) -> Array:
    """Average along a line to the right, at an angle drawn for each image between -45 and 45 degrees.

    The line has 2 radius + 1 points, whole pixels nearest to it; point i has weight
    ``exp(-i^2 / (2 deviation^2))``, so the line has a sharp end at the pixel itself. Border pixels are continued.

    Source: ``MotionBlurImage`` of ImageMagick, which made CIFAR-10-C.
    """
    angles = np.radians(random.uniform(-45, 45, len(pixels)))
    blurred = np.empty_like(pixels)
    scale = _scale(pixels)
    radius, deviation = round(radius * scale), deviation * scale
    for number, angle in enumerate(angles):
        kernel = _motion_kernel(2 * radius + 1, deviation, angle)
        blurred[number] = _weighted_neighbours(pixels[number : number + 1], kernel, border="edge")[0]
    return blurred


def zoom_blur(pixels: Array, random: np.random.Generator, steps: int) -> Array:
    """Average the image with its enlargements 1, 1.01, 1.02, ... about its middle, ``steps`` of them.

    Enlargements are linear interpolations. Nothing is random.
    """
    height, width = pixels.shape[1:3]
    planes = pixels.transpose(0, 3, 1, 2)
    if height * width <= AS_ONE_MATRIX:
        blurred = (planes.reshape(-1, height * width) @ _zoom_operator(steps, height, width)).reshape(planes.shape)
    else:
        blurred = planes / (steps + 1)  # the clean image counts once more than its enlargement by 1
        for step in range(steps):
            wide = _read(planes, _shown_at(1 + step / 100, width))
            blurred += _read(wide.swapaxes(2, 3), _shown_at(1 + step / 100, height)).swapaxes(2, 3) / (steps + 1)
    return np.ascontiguousarray(blurred.transpose(0, 2, 3, 1))


def _scale(pixels: Array) -> float:
    """Say how many of an image's pixels are one of 32 x 32; at least 1."""
    shorter: int = min(pixels.shape[1:3])
    return max(32, shorter) / 32


def _gaussian(radius: int, deviation: float) -> Array:
    """Return 2 radius + 1 weights that sum to 1."""
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * deviation**2))
    scaled: Array = weights / weights.sum()
    return scaled


def _motion_kernel(width: int, deviation: float, angle: float) -> Array:
    """Return the weights of a motion's line, shape (2 width - 1, 2 width - 1), the pixel itself in the middle."""
    steps = np.arange(width)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    right, down = (np.ceil(steps * part - 0.5).astype(np.int64) for part in (math.cos(angle), math.sin(angle)))
    kernel = np.zeros((2 * width - 1, 2 * width - 1))
    np.add.at(kernel, (down + width - 1, right + width - 1), weights / weights.sum())
    return kernel


def _weighted_neighbours(pixels: Array, kernel: Array, *, border: Literal["edge", "reflect"]) -> Array:
    """Sum ``kernel[i, j] * pixels[:, y + i - rows // 2, x + j - columns // 2]`` over the kernel.

    Summed one neighbour at a time, so that an image's result does not depend on how many there are.
    """
    height, width = pixels.shape[1:3]
    above, left = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(pixels, ((0, 0), (above, above), (left, left), (0, 0)), mode=border)
    total = np.zeros_like(pixels)
    for down, right in zip(*np.nonzero(kernel), strict=True):
        total += kernel[down, right] * padded[:, down : down + height, right : right + width]
    return total


@lru_cache(maxsize=1)
def _zoom_operator(steps: int, height: int, width: int) -> Array:
    """Return the zoom blur of flattened planes as a matrix to multiply from the right."""
    # The clean image counts once more than its enlargement by 1.
    total = np.eye(height * width)
    for step in range(steps):
        total += np.kron(_enlargement(1 + step / 100, height), _enlargement(1 + step / 100, width))
    return np.ascontiguousarray(total.T / (steps + 1))


def _enlargement(factor: float, size: int) -> Array:
    """Return the weights of linear interpolation that enlarge one axis about its middle, shape (size, size)."""
    weights: Array = np.maximum(0.0, 1 - np.abs(_shown_at(factor, size)[:, None] - np.arange(size)))
    return weights


def _shown_at(factor: float, size: int) -> Array:
    """Say which place of an axis, between its pixels, each pixel shows once the axis is enlarged about its middle."""
    shown = math.ceil(size / factor)
    enlarged = round(shown * factor)
    # The first and the last shown pixel stay the first and the last; a pixel too many, where there is one, is cut off.
    places: Array = np.arange(size) * (shown - 1) / max(1, enlarged - 1) + (size - shown) // 2
    return places


def _read(values: Array, places: Array) -> Array:
    """Interpolate the last axis linearly at places between its pixels."""
    before = np.floor(places).astype(np.int64)
    after, share = np.minimum(before + 1, values.shape[-1] - 1), places - before
    read: Array = values[..., before] * (1 - share) + values[..., after] * share
    return read

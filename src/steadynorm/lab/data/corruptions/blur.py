"""Corruptions that mix each pixel with its neighbours; pixels as described in ``noise``."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steadynorm.lab.data.images import SIZE

__all__ = ["defocus_blur", "gaussian_blur", "motion_blur", "zoom_blur"]

Array = NDArray[np.float64]


def defocus_blur(pixels: Array, random: np.random.Generator, radius: float, softness: float) -> Array:
    """Average over a disk of the radius given, at most 1.5 pixels, as a lens out of focus does.

    The disk is softened by a Gaussian of 3 x 3 pixels with standard deviation ``softness``; the image is
    continued by its mirror image, without its border doubled.
    """
    place = np.arange(-2, 3)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(np.float64)
    weights = _gaussian(1, softness)
    softened = _weighted_neighbours(disk[None, :, :, None], np.outer(weights, weights), border="reflect")[0, :, :, 0]
    return _weighted_neighbours(pixels, softened / disk.sum(), border="reflect")


def gaussian_blur(pixels: Array, random: np.random.Generator, deviation: float) -> Array:
    """Average with Gaussian weights, cut off at four standard deviations; border pixels are continued."""
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
    for number, angle in enumerate(angles):
        kernel = _motion_kernel(2 * radius + 1, deviation, angle)
        blurred[number] = _weighted_neighbours(pixels[number : number + 1], kernel, border="edge")[0]
    return blurred


def zoom_blur(pixels: Array, random: np.random.Generator, steps: int) -> Array:
    """Average the image with its enlargements 1, 1.01, 1.02, ... about its middle, ``steps`` of them.

    Enlargements are linear interpolations. Nothing is random.
    """
    planes = pixels.transpose(0, 3, 1, 2).reshape(-1, SIZE * SIZE)
    blurred = (planes @ _zoom_operator(steps)).reshape(-1, 3, SIZE, SIZE)
    return np.ascontiguousarray(blurred.transpose(0, 2, 3, 1))


def _gaussian(radius: int, deviation: float) -> Array:
    """Give 2 radius + 1 weights that sum to 1."""
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * deviation**2))
    scaled: Array = weights / weights.sum()
    return scaled


def _motion_kernel(width: int, deviation: float, angle: float) -> Array:
    """Give the weights of a motion's line, shape (2 width - 1, 2 width - 1), the pixel itself in the middle."""
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
def _zoom_operator(steps: int) -> Array:
    """Give the zoom blur of flattened planes as a matrix to multiply from the right, shape (1024, 1024)."""
    # The clean image counts once more than its enlargement by 1.
    total = np.eye(SIZE * SIZE)
    for step in range(steps):
        enlarge = _enlargement(1 + step / 100)
        total += np.kron(enlarge, enlarge)
    return np.ascontiguousarray(total.T / (steps + 1))


def _enlargement(factor: float) -> Array:
    """Give the weights of linear interpolation that enlarge one axis about its middle, shape (32, 32)."""
    shown = math.ceil(SIZE / factor)
    enlarged = round(shown * factor)
    # The first and the last shown pixel stay the first and the last; a 33rd pixel, where there is one, is cut off.
    place = np.arange(SIZE) * (shown - 1) / (enlarged - 1) + (SIZE - shown) // 2
    weights: Array = np.maximum(0.0, 1 - np.abs(place[:, None] - np.arange(SIZE)))
    return weights

"""Corruptions of light and colour; pixels as described in ``noise``.

Images of one channel are grey: they have a value, which ``brightness`` raises, and no saturation to change.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["brightness", "contrast", "fog", "saturate"]

Array = NDArray[np.float64]


def brightness(pixels: Array, random: np.random.Generator, amount: float) -> Array:
    """Add to the value of hue, saturation and value: the largest of the channels, kept to at most 1."""
    value = pixels.max(axis=3, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    # Black has no hue, so it becomes grey.
    lit: Array = np.where(value > 0, pixels * (brighter / np.where(value > 0, value, 1)), brighter)
    return lit


def contrast(pixels: Array, random: np.random.Generator, factor: float) -> Array:
    """Multiply the distance from each channel's mean over the image."""
    mean = pixels.mean(axis=(1, 2), keepdims=True)
    changed: Array = mean + factor * (pixels - mean)
    return changed


def saturate(pixels: Array, random: np.random.Generator, factor: float, offset: float) -> Array:
    """Change the saturation of hue, saturation and value to ``factor * saturation + offset``, kept to at most 1.

    Grey counts as red of saturation 0, as it does where CIFAR-10-C was made, so an offset reddens it. Images of one
    channel have no red, and stay as they are.
    """
    if pixels.shape[3] == 1:
        return pixels.copy()
    value = pixels.max(axis=3, keepdims=True)
    spread = value - pixels.min(axis=3, keepdims=True)
    coloured = spread > 0
    # How far each channel lies below the value, as a share of the farthest: this holds the hue.
    below = np.where(coloured, (value - pixels) / np.where(coloured, spread, 1), np.array([0.0, 1.0, 1.0]))
    saturation = spread / np.where(value > 0, value, 1)
    changed: Array = value * (1 - np.minimum(factor * saturation + offset, 1) * below)
    return changed


def fog(pixels: Array, random: np.random.Generator, thickness: float, decay: float) -> Array:
    """Add random clouds, and scale so that an image's lightest pixel could stay as light as it was.

        y = (x + thickness * clouds) * max(x) / (max(x) + thickness)

    Args:
        thickness: of the clouds, where full light is 1.
        decay: how much faster small clouds are paler than large ones; larger is smoother.
    """
    lightest = pixels.max(axis=(1, 2, 3), keepdims=True)
    height, width = pixels.shape[1:3]
    sky = 2 ** max(1, math.ceil(math.log2(max(height, width))))
    clouds = _clouds(random.uniform(-1, 1, (len(pixels), sky, sky)), decay)[:, :height, :width, None]
    foggy: Array = (pixels + thickness * clouds) * (lightest / (lightest + thickness))
    return foggy


def _clouds(noise: Array, decay: float) -> Array:
    """Turn noise of shape (N, S, S), S a power of two, into heights in [0, 1] that continue across the borders.

    Source: the diamond-square algorithm, Fournier, Fussell & Carpenter 1982, "Computer rendering of stochastic
    models". The amplitude falls by decay^2 from one grid to the next finer one, as in CIFAR-10-C.
    """
    heights = np.zeros_like(noise)
    amplitude, step = 1.0, noise.shape[1]
    while step > 1:
        half = step // 2
        corners, middles = slice(0, None, step), slice(half, None, step)
        grid = heights[:, corners, corners]
        centres = _with_next(_with_next(grid, 1), 2) / 4 + amplitude * noise[:, middles, middles]
        heights[:, middles, middles] = centres
        upper = _with_next(grid, 2) + _with_previous(centres, 1)
        left = _with_next(grid, 1) + _with_previous(centres, 2)
        heights[:, corners, middles] = upper / 4 + amplitude * noise[:, corners, middles]
        heights[:, middles, corners] = left / 4 + amplitude * noise[:, middles, corners]
        amplitude, step = amplitude / decay**2, half
    heights -= heights.min(axis=(1, 2), keepdims=True)
    clouds: Array = heights / heights.max(axis=(1, 2), keepdims=True)
    return clouds


def _with_next(values: Array, axis: int) -> Array:
    return values + np.roll(values, -1, axis)


def _with_previous(values: Array, axis: int) -> Array:
    return values + np.roll(values, 1, axis)

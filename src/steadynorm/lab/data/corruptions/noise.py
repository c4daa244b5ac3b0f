"""Corruptions that add noise to each value of each pixel on its own.

Here and in the other files of corruptions ``pixels`` are float64 of shape (N, H, W, C) in [0, 1], C being 1 or 3, and
left unchanged; the result has their shape and may leave [0, 1]. Each function makes one draw for all images, the
images being its first axis: two draws would make an image's random numbers depend on how many there are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise"]

Array = NDArray[np.float64]


def gaussian_noise(pixels: Array, random: np.random.Generator, deviation: float) -> Array:
    """Add normal noise of mean 0 and the standard deviation given, where full light is 1."""
    return pixels + deviation * random.standard_normal(pixels.shape)


def shot_noise(pixels: Array, random: np.random.Generator, photons: float) -> Array:
    """Count photons: ``Poisson(pixels * photons) / photons``, where full light gives ``photons`` on average."""
    return random.poisson(pixels * photons) / photons


def impulse_noise(pixels: Array, random: np.random.Generator, share: float) -> Array:
    """Replace a share of the values: one half of it by 0, the other half by 1."""
    drawn = random.random(pixels.shape)
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, pixels))

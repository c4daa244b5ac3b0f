"""The corruptions by name, with the strength of each severity.

Formulas and strengths are those published for the 32 x 32 images of CIFAR-10-C; on larger images lengths grow with
the shorter side. What comes out is not CIFAR-10-C itself: random numbers are this package's own, values are rounded
to bytes where CIFAR-10-C cuts them off, motion blur is ImageMagick's formula and not that program, and the JPEG encoder
is Pillow's present one. Glass blur, snow, frost and elastic transform of CIFAR-10-C are not here.

Source: Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
perturbations", arXiv 1903.12261; strengths from its public ``make_cifar_c.py``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from steadynorm.lab.data.corruptions.blur import defocus_blur, gaussian_blur, motion_blur, zoom_blur
from steadynorm.lab.data.corruptions.detail import jpeg_compression, pixelate
from steadynorm.lab.data.corruptions.light import brightness, contrast, fog, saturate
from steadynorm.lab.data.corruptions.noise import gaussian_noise, impulse_noise, shot_noise
from steadynorm.lab.data.images import Images, random_stream

__all__ = ["CORRUPTIONS", "OF_COLOUR", "SEVERITIES", "Corruption", "corrupt"]

SEVERITIES = (1, 2, 3, 4, 5)
"""From mild to strong."""
OF_COLOUR = ("saturate",)
"""Corruptions that leave images of one channel as they are, because grey has no colour to change."""
_CHUNK = 250  # images of 3 x 32 x 32 that are worked on at once; fewer of larger ones


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One way to make images harder."""

    apply: Callable[..., NDArray[np.float64]]
    """Called with pixels, float64 in [0, 1] of shape (N, H, W, C), a random generator and one row of
    ``strengths``; gives pixels of that shape, which may leave [0, 1]."""
    strengths: tuple[tuple[float, ...], ...]
    """For each severity what ``apply`` takes after its first two arguments."""


CORRUPTIONS = {
    "gaussian_noise": Corruption(apply=gaussian_noise, strengths=((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": Corruption(apply=shot_noise, strengths=((500,), (250,), (100,), (75,), (50,))),
    "impulse_noise": Corruption(apply=impulse_noise, strengths=((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus_blur": Corruption(
        apply=defocus_blur, strengths=((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
    ),
    "gaussian_blur": Corruption(apply=gaussian_blur, strengths=((0.4,), (0.6,), (0.7,), (0.8,), (1.0,))),
    "motion_blur": Corruption(apply=motion_blur, strengths=((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))),
    "zoom_blur": Corruption(apply=zoom_blur, strengths=((7,), (12,), (16,), (21,), (26,))),
    "fog": Corruption(apply=fog, strengths=((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))),
    "brightness": Corruption(apply=brightness, strengths=((0.05,), (0.10,), (0.15,), (0.20,), (0.30,))),
    "contrast": Corruption(apply=contrast, strengths=((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "saturate": Corruption(apply=saturate, strengths=((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))),
    "pixelate": Corruption(apply=pixelate, strengths=((30,), (28,), (27,), (24,), (20,))),
    "jpeg_compression": Corruption(apply=jpeg_compression, strengths=((80,), (65,), (58,), (50,), (40,))),
}
"""What :func:`corrupt` knows. A higher severity is harder, with two exceptions that are as published: severities
1 and 2 of ``saturate`` take colour away and 3 to 5 add some, so 3 changes the images less than 2; and 3 and 4 of
``motion_blur`` differ only in weights of less than a billionth and in their random angles."""


def corrupt(images: Images, name: str, *, severity: int, seed: int) -> Images:
    """Return the same images, corrupted.

    Random numbers depend on ``seed``, ``name`` and ``severity`` alone and are drawn image after image. So the
    first images come out the same however many follow them. The noise belongs to the place and not to the
    image: corrupt first, and reorder afterwards.

    Args:
        images: of any size, in one channel or three; left unchanged. In one channel those of :data:`OF_COLOUR` change
            nothing, and ``brightness`` adds to the only value.
        name: one of :data:`CORRUPTIONS`.
        severity: one of :data:`SEVERITIES`.
        seed: in [0, 2**64).

    Returns:
        Images of the same shape, order and labels.

    Raises:
        ValueError: an argument is outside its range, or the images have neither one channel nor three.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corrupt: name must be one of {', '.join(CORRUPTIONS)}, got {name!r}.")
    if severity not in SEVERITIES:
        raise ValueError(f"corrupt: severity must be one of {SEVERITIES}, got {severity}.")
    if images.pixels.shape[1] not in (1, 3):
        raise ValueError(f"corrupt: images must have 1 or 3 channels, got {tuple(images.pixels.shape)}.")
    corruption = CORRUPTIONS[name]
    random = random_stream(seed, _stream_number(name, severity))
    rows = images.rows.numpy()
    corrupted = np.empty(rows.shape, dtype=np.uint8)
    count = max(1, _CHUNK * 3 * 32 * 32 // math.prod(rows.shape[1:]))
    for first in range(0, len(rows), count):
        chunk = slice(first, first + count)
        pixels = corruption.apply(rows[chunk] / 255.0, random, *corruption.strengths[severity - 1])
        corrupted[chunk] = np.floor(np.clip(pixels, 0, 1) * 255 + 0.5)
    return Images.of_rows(torch.from_numpy(corrupted), images.labels)


def _stream_number(name: str, severity: int) -> int:
    """Return a number of 64 bits that no other corruption or severity has, and no epoch comes near."""
    return int.from_bytes(hashlib.blake2b(f"{name} {severity}".encode(), digest_size=8).digest(), "little")

"""Linear maps, normalized and rectified."""

from __future__ import annotations

import math

from torch import nn

from steadynorm.lab.normalizations import Normalization

__all__ = ["mlp"]

WIDTHS = (256, 256, 256)


def mlp(
    norm: Normalization, *, classes: int, channels: int = 3, image_size: tuple[int, int] = (32, 32)
) -> nn.Sequential:
    """Build three hidden layers of 256 units on all numbers of an image; the normalizations are the 1d layers.

    Source: the shape is that of Ioffe & Szegedy 2015 (arXiv 1502.03167), section 4.1, which had 100 sigmoids a layer.
    """
    layers = nn.Sequential()
    layers.add_module("flatten", nn.Flatten())
    numbers = channels * math.prod(image_size)
    for number, width in enumerate(WIDTHS, start=1):
        layers.add_module(f"linear{number}", nn.Linear(numbers, width, bias=norm.convolution_bias))
        layers.add_module(f"norm{number}", norm.build(width, dimensions=1))
        numbers = width
    layers.add_module("classifier", nn.Linear(numbers, classes))
    return layers

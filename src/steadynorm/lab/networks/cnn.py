"""Convolutions in stages, of any depth and width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from steadynorm.lab.networks.blocks import add_classifier, convolution
from steadynorm.lab.normalizations import Normalization
from steadynorm.reporting.failure import UserError

__all__ = ["cnn"]


def cnn(
    norm: Normalization,
    *,
    depth: int,
    widths: Sequence[int],
    classes: int,
    channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
) -> nn.Sequential:
    """Build 3x3 convolutions in stages, each convolution normalized and rectified, then averaged and classified.

    ``depth`` convolutions are spread evenly over the stages, earlier stages first; each stage ends with 2x2
    max-pooling.

    Raises:
        UserError: fewer convolutions than stages, or more halvings than the images allow.
    """
    most = min(image_size).bit_length() - 1
    if not 1 <= len(widths) <= most or min(widths) < 1:
        size = "x".join(map(str, image_size))
        raise UserError(
            f"--widths: must be one to {most} positive numbers for images of {size}, each stage halves them, "
            f"got {' '.join(map(str, widths))}."
        )
    if depth < len(widths):
        raise UserError(f"--depth: {len(widths)} stages need at least {len(widths)} convolutions, got {depth}.")
    layers = nn.Sequential()
    number = 0
    for stage, width in enumerate(widths):
        for _ in range(depth // len(widths) + (stage < depth % len(widths))):
            number += 1
            layers.add_module(f"conv{number}", convolution(channels, width, norm))
            layers.add_module(f"norm{number}", norm.build(width))
            channels = width
        layers.add_module(f"pool{stage + 1}", nn.MaxPool2d(2))
    add_classifier(layers, channels, classes)
    return layers

"""Plain 3x3 convolutions, doubled in width where the images are halved."""

from __future__ import annotations

from torch import nn

from steadynorm.lab.networks.blocks import add_classifier, convolution
from steadynorm.lab.normalizations import Normalization

__all__ = ["vgg"]

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def vgg(
    norm: Normalization, *, classes: int, channels: int = 3, image_size: tuple[int, int] = (32, 32)
) -> nn.Sequential:
    """Build the eight convolutions of VGG-11, each normalized and rectified, in five stages. 9.2 M parameters.

    A stage ends with 2x2 max-pooling, as long as there is something to halve: images of 28x28 are pooled four times.
    One linear map classifies the average, in place of the paper's three large ones.

    Source: Simonyan & Zisserman 2015 (arXiv 1409.1556), table 1, configuration A; it had no normalization.
    """
    layers = nn.Sequential()
    number, side = 0, min(image_size)
    for stage, widths in enumerate(STAGES, start=1):
        for width in widths:
            number += 1
            layers.add_module(f"conv{number}", convolution(channels, width, norm))
            layers.add_module(f"norm{number}", norm.build(width))
            channels = width
        if side > 1:
            layers.add_module(f"pool{stage}", nn.MaxPool2d(2))
            side //= 2
    add_classifier(layers, channels, classes)
    return layers

"""The 20-layer residual network for small images."""

from __future__ import annotations

from torch import nn

from steadynorm.lab.networks.blocks import BasicBlock, add_classifier, convolution
from steadynorm.lab.normalizations import Normalization

__all__ = ["resnet20"]


def resnet20(norm: Normalization, *, classes: int, channels: int = 3) -> nn.Sequential:
    """Build three stages of three blocks, widths 16, 32, 64; later stages halve the images. 0.27 M parameters.

    Source: He et al. 2016 (arXiv 1512.03385), section 4.2, with their parameter-free shortcuts (option A).
    """
    layers = nn.Sequential()
    layers.add_module("conv", convolution(channels, 16, norm))
    layers.add_module("norm", norm.build(16))
    channels = 16
    for stage, width in enumerate((16, 32, 64)):
        for number in range(3):
            stride = 2 if stage > 0 and number == 0 else 1
            layers.add_module(f"block{3 * stage + number + 1}", BasicBlock(channels, width, stride, norm))
            channels = width
    add_classifier(layers, channels, classes)
    return layers

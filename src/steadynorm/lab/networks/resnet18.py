"""The 18-layer residual network, in its form for small images."""

from __future__ import annotations

from torch import nn

from steadynorm.lab.networks.blocks import BasicBlock, add_classifier, convolution
from steadynorm.lab.normalizations import Normalization

__all__ = ["resnet18"]


def resnet18(norm: Normalization, *, classes: int, channels: int = 3) -> nn.Sequential:
    """Build four stages of two blocks, widths 64 to 512; later stages halve the images. 11.2 M parameters.

    Source: He et al. 2016 (arXiv 1512.03385), table 1, with projections where the shape changes (option B). For small
    images its first convolution is of 3x3 without a stride, and no pooling follows.
    """
    layers = nn.Sequential()
    layers.add_module("conv", convolution(channels, 64, norm))
    layers.add_module("norm", norm.build(64))
    channels = 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for number in range(2):
            stride = 2 if stage > 0 and number == 0 else 1
            block = BasicBlock(channels, width, stride, norm, projects=True)
            layers.add_module(f"block{2 * stage + number + 1}", block)
            channels = width
    add_classifier(layers, channels, classes)
    return layers

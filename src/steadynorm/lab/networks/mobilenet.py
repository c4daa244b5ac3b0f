"""Inverted residual blocks with depthwise convolutions."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from steadynorm.lab.networks.blocks import ResidualBlock, add_classifier, convolution
from steadynorm.lab.normalizations import Normalization

__all__ = ["mobilenet"]

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, width, blocks, stride of the first: table 2 of the paper, whose second stage halves larger images."""


def mobilenet(norm: Normalization, *, classes: int, channels: int = 3) -> nn.Sequential:
    """Build MobileNetV2 for small images: they are halved three times, not five. 2.2 M parameters for ten classes.

    ReLU is unbounded, where the paper cuts it off at 6. There is no dropout before the classifier.

    Source: Sandler et al. 2018 (arXiv 1801.04381).
    """
    layers = nn.Sequential()
    layers.add_module("conv", convolution(channels, 32, norm))
    layers.add_module("norm", norm.build(32))
    channels, number = 32, 0
    for expansion, width, blocks, first_stride in STAGES:
        for block in range(blocks):
            number += 1
            stride = first_stride if block == 0 else 1
            layers.add_module(f"block{number}", InvertedBlock(channels, width, stride, norm, expansion=expansion))
            channels = width
    layers.add_module("last_conv", convolution(channels, 1280, norm, size=1))
    layers.add_module("last_norm", norm.build(1280))
    add_classifier(layers, 1280, classes)
    return layers


class InvertedBlock(ResidualBlock):
    """norm(project(relu(norm(depthwise(relu(norm(expand(x)))))))), plus x where the shape allows; no last activation.

    Args:
        channels: channels of the input.
        width: width of the output.
        stride: stride of the depthwise convolution.
        norm: the normalization.
        expansion: channels in between, as a multiple of the input's; with 1 nothing is expanded.
    """

    def __init__(self, channels: int, width: int, stride: int, norm: Normalization, *, expansion: int) -> None:
        super().__init__()
        inside = channels * expansion
        self.expand = nn.Sequential()
        if expansion > 1:
            self.expand = nn.Sequential(convolution(channels, inside, norm, size=1), norm.build(inside))
        self.conv = convolution(inside, inside, norm, stride=stride, groups=inside)
        self.norm = norm.build(inside)
        self.project = convolution(inside, width, norm, size=1)
        self.project_norm = norm.build(width, activation=None)
        self.adds_input = stride == 1 and channels == width

    @property
    def last_norm(self) -> nn.Module:
        """The normalization after the projection."""
        return self.project_norm

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H/stride, W/stride)."""
        h = self.project(self.norm(self.conv(self.expand(x))))
        return cast(Tensor, self.project_norm(h, residual=x) if self.adds_input else self.project_norm(h))

"""Blocks that several networks share, and their initial weights."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.lab.normalizations import Normalization

__all__ = ["BasicBlock", "ResidualBlock", "add_classifier", "convolution", "initialize_"]


def convolution(
    channels: int, width: int, norm: Normalization, *, size: int = 3, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Build a convolution that keeps height and width except for its stride, before a normalization."""
    how = {"stride": stride, "padding": size // 2, "groups": groups}
    return nn.Conv2d(channels, width, size, bias=norm.convolution_bias, **how)  # type: ignore[arg-type]


def add_classifier(layers: nn.Sequential, channels: int, classes: int) -> None:
    """End a network: average over positions, then one linear map."""
    layers.add_module("average", nn.AdaptiveAvgPool2d(1))
    layers.add_module("flatten", nn.Flatten())
    layers.add_module("classifier", nn.Linear(channels, classes))


class ResidualBlock(nn.Module):
    """A block whose last normalization is added to a shortcut."""

    @property
    def last_norm(self) -> nn.Module:
        """The normalization that the shortcut is added to."""
        raise NotImplementedError


class BasicBlock(ResidualBlock):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)), with convolutions of 3x3.

    Args:
        channels: channels of the input.
        width: width of the output.
        stride: stride of the first convolution and of the shortcut.
        norm: the normalization.
        projects: whether a shortcut that changes the shape is a normalized 1x1 convolution, He et al.'s option B;
            without it every ``stride``-th pixel is taken and new channels are zero, option A.
    """

    def __init__(self, channels: int, width: int, stride: int, norm: Normalization, *, projects: bool = False) -> None:
        super().__init__()
        self.conv1 = convolution(channels, width, norm, stride=stride)
        self.norm1 = norm.build(width)
        self.conv2 = convolution(width, width, norm)
        self.norm2 = norm.build(width)
        self.stride = stride
        self.new_channels = width - channels
        self.projection = None
        if projects and (stride > 1 or self.new_channels):
            self.projection = nn.Sequential(
                convolution(channels, width, norm, size=1, stride=stride), norm.build(width, activation=None)
            )

    @property
    def last_norm(self) -> nn.Module:
        """The second normalization."""
        return self.norm2

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H/stride, W/stride)."""
        h = self.norm1(self.conv1(x))
        return cast(Tensor, self.norm2(self.conv2(h), residual=self._shortcut(x)))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            return cast(Tensor, self.projection(x))
        if self.stride == 1 and self.new_channels == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


@torch.no_grad()
def initialize_(model: nn.Module, seed: int) -> None:
    """Draw weights as He et al. 2015 (arXiv 1502.01852) do, for the backward pass; biases start at zero.

    Linear maps before the last module count as followed by a rectifier.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            how = "linear" if module is model[-1] else "relu"  # type: ignore[index]
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity=how, generator=generator)  # type: ignore[arg-type]
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.zero_()

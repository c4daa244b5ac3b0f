"""The networks, with the normalization left open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.lab.normalizations import Normalization, find_normalization
from steadynorm.reporting.failure import UserError, check_known

__all__ = ["build_network", "cnn", "resnet20", "zero_last_gamma_"]


def build_network(
    name: str,
    *,
    arm: str,
    depth: int,
    widths: Sequence[int],
    classes: int,
    seed: int,
    channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
    **training: int,
) -> nn.Module:
    """Build a network and draw its initial weights.

    Two arms with the same seed start from the same convolution and linear weights: only those draw random
    numbers, in the same order.

    Args:
        name: ``cnn`` or ``resnet20``.
        arm: registered name of the normalization.
        depth: number of convolutions of ``cnn``.
        widths: channels of each stage of ``cnn``; a stage ends with 2x2 max-pooling.
        classes: number of outputs.
        seed: decides the weights.
        channels: of the images.
        image_size: their height and width in pixels.
        training: what layers may want to know of it: ``update_every`` and ``batches``, see ``Normalization.build``.

    Raises:
        UserError: unknown network or arm, or a depth or width that makes no network.
    """
    check_known("--network", [name], ("cnn", "resnet20"), what="network")
    norm = find_normalization(arm)
    norm = replace(norm, build=partial(norm.build, **training))
    if name == "cnn":
        how = {"depth": depth, "widths": widths, "image_size": image_size}
        model = cnn(norm, classes=classes, channels=channels, **how)  # type: ignore[arg-type]
    else:
        model = resnet20(norm, classes=classes, channels=channels)
    _initialize(model, seed)
    return model


@torch.no_grad()
def zero_last_gamma_(model: nn.Module) -> None:
    """Start every residual block as its shortcut: the weight of its last normalization is zero.

    Raises:
        UserError: there is no residual block whose normalization has a weight.

    Source: Goyal et al. 2017 (arXiv 1706.02677), section 5.1.
    """
    weights = [getattr(block.norm2, "weight", None) for block in model.modules() if isinstance(block, _Block)]
    if not weights or any(weight is None for weight in weights):
        raise UserError("zero_last_gamma: needs residual blocks whose normalization has a weight. Use resnet20.")
    for weight in weights:
        assert weight is not None
        weight.zero_()


def cnn(
    norm: Normalization,
    *,
    depth: int,
    widths: Sequence[int],
    classes: int,
    channels: int = 3,
    image_size: tuple[int, int] = (32, 32),
) -> nn.Module:
    """Build 3x3 convolutions in stages, each convolution normalized and rectified, then averaged and classified.

    ``depth`` convolutions are shared out evenly over the stages, earlier stages first. Input (N, channels, H, W).

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
            layers.add_module(f"conv{number}", _convolution(channels, width, norm))
            layers.add_module(f"norm{number}", norm.build(width))
            channels = width
        layers.add_module(f"pool{stage + 1}", nn.MaxPool2d(2))
    layers.add_module("average", nn.AdaptiveAvgPool2d(1))
    layers.add_module("flatten", nn.Flatten())
    layers.add_module("classifier", nn.Linear(channels, classes))
    return layers


def resnet20(norm: Normalization, *, classes: int, channels: int = 3) -> nn.Module:
    """Build the 20-layer residual network for small images: three stages of three blocks, widths 16, 32, 64.

    Source: He et al. 2016 (arXiv 1512.03385), section 4.2, with their parameter-free shortcuts (option A).
    """
    layers = nn.Sequential()
    layers.add_module("conv", _convolution(channels, 16, norm))
    layers.add_module("norm", norm.build(16))
    channels = 16
    for stage, width in enumerate((16, 32, 64)):
        for number in range(3):
            stride = 2 if stage > 0 and number == 0 else 1
            layers.add_module(f"block{3 * stage + number + 1}", _Block(channels, width, stride, norm))
            channels = width
    layers.add_module("average", nn.AdaptiveAvgPool2d(1))
    layers.add_module("flatten", nn.Flatten())
    layers.add_module("classifier", nn.Linear(channels, classes))
    return layers


class _Block(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""

    def __init__(self, channels: int, width: int, stride: int, norm: Normalization) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, width, norm, stride)
        self.norm1 = norm.build(width)
        self.conv2 = _convolution(width, width, norm)
        self.norm2 = norm.build(width)
        self.stride = stride
        self.new_channels = width - channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H/stride, W/stride)."""
        h = self.norm1(self.conv1(x))
        return cast(Tensor, self.norm2(self.conv2(h), residual=self._shortcut(x)))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Take every ``stride``-th pixel and fill the new channels with zeros."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def _convolution(channels: int, width: int, norm: Normalization, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=norm.convolution_bias)


@torch.no_grad()
def _initialize(model: nn.Module, seed: int) -> None:
    """Draw weights as He et al. 2015 (arXiv 1502.01852) do, for the backward pass; biases start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear", generator=generator)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.bias.zero_()

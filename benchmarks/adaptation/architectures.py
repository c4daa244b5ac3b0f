"""Small networks that the doctor's benchmark lacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.doctor.architectures import ARCHITECTURES as OF_THE_DOCTOR
from benchmarks.doctor.architectures import CLASSES, Architecture
from benchmarks.doctor.architectures.registry import block, conv

__all__ = ["ARCHITECTURES"]


class Wide(nn.Module):
    """A block of ConvNeXt (Liu et al. 2022, arXiv 2201.03545) with a batch norm for its layer norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(conv(channels, channels, 5, groups=channels), nn.BatchNorm2d(channels)),
            *(nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's result to its input."""
        added: Tensor = x + self.layers(x)
        return added


class Ghost(nn.Module):
    """A module of GhostNet (Han et al. 2020, arXiv 1911.11907): half of the channels are filtered from the others."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        self.own = block(inputs, half, 1, stride)
        self.copies = block(half, half, 3, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        """Join channels and what is filtered from them."""
        y = self.own(x)
        return torch.cat((y, self.copies(y)), 1)


class Bottleneck(nn.Module):
    """A block of a deep residual network (He et al. 2016, arXiv 1512.03385): narrow, filter, widen, add."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        inner = outputs // 4
        self.layers = nn.Sequential(
            *(block(inputs, inner, 1), block(inner, inner, 3, stride)),
            *(conv(inner, outputs, 1), nn.BatchNorm2d(outputs)),
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's result to its input or a projection of it."""
        added: Tensor = torch.relu(self.layers(x) + self.shortcut(x))
        return added


def _convnext() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 48, 4, 4, bias=False), nn.BatchNorm2d(48), Wide(48), Wide(48), Wide(48)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, CLASSES)),
    )


def _ghostnet() -> nn.Module:
    return nn.Sequential(
        block(3, 16, stride=2),
        *(Ghost(16, 32, 2), Ghost(32, 32), Ghost(32, 64, 2), Ghost(64, 64), Ghost(64, 96)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, CLASSES)),
    )


def _bottleneck() -> nn.Module:
    return nn.Sequential(
        block(3, 16, stride=2),
        *(Bottleneck(16, 64, 2), Bottleneck(64, 64), Bottleneck(64, 96, 2), Bottleneck(96, 96)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, CLASSES)),
    )


ARCHITECTURES = OF_THE_DOCTOR | {
    each.name: each
    for each in (
        Architecture(name="convnext", half="held out", kind="images", build=_convnext, rate=0.05),
        Architecture(name="ghost", half="held out", kind="images", build=_ghostnet),
        Architecture(name="bottleneck", half="held out", kind="images", build=_bottleneck),
    )
}

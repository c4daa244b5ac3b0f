"""The architectures of the benchmark, and the blocks that several share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

__all__ = ["CLASSES", "Architecture", "Half", "Kind", "block", "conv"]

Half = Literal["tuning", "held out"]
Kind = Literal["images", "signals"]
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A family of networks.

    Args:
        name: in tables.
        half: whether thresholds may be chosen on it.
        kind: of data.
        build: makes an untrained network, (N, 3, ...) -> logits (N, 10).
        rate: largest learning rate of its training.
        package: that it comes from, beyond torch.
    """

    name: str
    half: Half
    kind: Kind
    build: Callable[[], nn.Module]
    rate: float = 0.1
    package: str = "torch"

    def is_available(self) -> bool:
        """Whether its package is installed."""
        return importlib.util.find_spec(self.package) is not None


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the size, but for the stride."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def block(
    inputs: int,
    outputs: int,
    size: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Return convolution, batch norm, activation."""
    return nn.Sequential(conv(inputs, outputs, size, stride, groups), nn.BatchNorm2d(outputs), activation())

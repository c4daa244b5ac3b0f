"""A plain, a residual, a mobile and a 1-d network, a pyramid with one head, a ResNet of a library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.architectures.registry import CLASSES, Architecture, block, conv

__all__ = ["BASIC", "Pyramid"]


class PlainNet(nn.Module):
    """Convolution, batch norm, ReLU, six times; batch norm in the head too."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *block(3, 16),
            *block(16, 32, stride=2),
            *block(32, 32),
            *block(32, 64, stride=2),
            *block(64, 64),
            *block(64, 64, stride=2),
        )
        self.head = nn.Sequential(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


class Residual(nn.Module):
    """A basic block of He et al. 2016 (arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        projection = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.shortcut: nn.Module = nn.Identity() if same else projection

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's result to its input."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _resnet() -> nn.Module:
    return nn.Sequential(
        block(3, 16),
        Residual(16, 16, 1),
        Residual(16, 32, 2),
        Residual(32, 64, 2),
        Residual(64, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


class Inverted(nn.Module):
    """An inverted residual of MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int = 4) -> None:
        super().__init__()
        wide = factor * inputs
        self.layers = nn.Sequential(
            *block(inputs, wide, 1),
            *block(wide, wide, stride=stride, groups=wide),
            conv(wide, outputs, 1),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Expand, filter each channel, project."""
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


def _mobilenet() -> nn.Module:
    return nn.Sequential(
        block(3, 16, stride=2),
        Inverted(16, 16, 1),
        Inverted(16, 24, 2),
        Inverted(24, 24, 1),
        Inverted(24, 40, 2),
        Inverted(40, 40, 1),
        block(40, 96, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, CLASSES),
    )


class SignalNet(nn.Module):
    """Convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 24, 1), (24, 48, 2), (48, 48, 2), (48, 64, 2)):
            layers += [nn.Conv1d(inputs, outputs, 5, stride, 2, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.classifier(self.features(x).mean(2))
        return logits


class Pyramid(nn.Module):
    """A detector in small: three levels of a backbone, and one head, its batch norms included, that all levels share.

    Every level classifies the image; their mean logits are the result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 24, stride=2)
        self.stages = nn.ModuleList(block(inputs, outputs, stride=2) for inputs, outputs in ((24, 48), (48, 96)))
        self.laterals = nn.ModuleList(conv(channels, 32, 1) for channels in (24, 48, 96))
        self.scales = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(3))
        self.head = nn.Sequential(*block(32, 32), *block(32, 32))
        self.classifier = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        levels = [self.stem(x)]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        found = [
            self.classifier(self.head(scale(lateral(level))).mean((2, 3)))
            for level, lateral, scale in zip(levels, self.laterals, self.scales, strict=True)
        ]
        return torch.stack(found).mean(0)


class Transformers(nn.Module):
    """``transformers``' ResNet, built from a configuration."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetForImageClassification

        options: dict[str, Any] = {"num_labels": CLASSES}
        config = ResNetConfig(
            **options,
            embedding_size=16,
            hidden_sizes=[16, 32, 64],
            depths=[1, 2, 1],
            layer_type="basic",
            downsample_in_first_stage=False,
        )
        self.network: Any = ResNetForImageClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


BASIC = (
    Architecture(name="cnn", half="tuning", kind="images", build=PlainNet),
    Architecture(name="resnet", half="tuning", kind="images", build=_resnet),
    Architecture(name="signal", half="tuning", kind="signals", build=SignalNet, rate=0.05),
    Architecture(name="mobilenet", half="tuning", kind="images", build=_mobilenet),
    Architecture(name="pyramid", half="tuning", kind="images", build=Pyramid),
    Architecture(
        name="transformers", half="tuning", kind="images", build=Transformers, rate=0.05, package="transformers"
    ),
)

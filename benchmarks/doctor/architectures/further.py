"""Networks that differ in kind from the basic ones.

Where the norm stands before the convolution, where its activation is not ReLU or is a part of it, where a branch has no
convolution, where the length is kept and dilations grow, where a vector is normalized, and where levels share weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.architectures.registry import CLASSES, Architecture, block, conv

__all__ = ["FURTHER", "RetinaNet", "Spectrum"]


class Dense(nn.Module):
    """A layer of a densely connected network (Huang et al. 2017, arXiv 1608.06993): norms come first."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.BatchNorm2d(inputs), nn.ReLU(), conv(inputs, 2 * growth, 1)),
            *(nn.BatchNorm2d(2 * growth), nn.ReLU(), conv(2 * growth, growth)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Append new channels to the input."""
        return torch.cat((x, self.layers(x)), 1)


def _densenet(growth: int = 12, depths: tuple[int, ...] = (2, 3, 3)) -> nn.Module:
    channels = 2 * growth
    layers: list[nn.Module] = [conv(3, channels, stride=2)]
    for place, depth in enumerate(depths):
        if place:  # a transition halves channels and size
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            layers.append(Dense(channels, growth))
            channels += growth
    layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


class Squeeze(nn.Module):
    """Squeeze and excitation (Hu et al. 2018, arXiv 1709.01507): channels are scaled by a function of their means."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel."""
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(functional.silu(self.reduce(means))))


class MBConv(nn.Module):
    """A block of EfficientNet (Tan & Le 2019, arXiv 1905.11946)."""

    def __init__(self, inputs: int, outputs: int, stride: int, size: int, factor: int = 3) -> None:
        super().__init__()
        wide = factor * inputs
        self.expand = block(inputs, wide, 1, activation=nn.SiLU)
        self.depthwise = block(wide, wide, size, stride, wide, nn.SiLU)
        self.squeeze = Squeeze(wide, max(4, inputs // 4))
        self.project = nn.Sequential(conv(wide, outputs, 1), nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Expand, filter each channel, weigh the channels, project."""
        y: Tensor = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.adds else y


def _efficientnet() -> nn.Module:
    return nn.Sequential(
        block(3, 16, stride=2, activation=nn.SiLU),
        MBConv(16, 24, 2, 3),
        MBConv(24, 24, 1, 5),
        MBConv(24, 40, 1, 3),
        MBConv(40, 40, 1, 3),
        MBConv(40, 64, 2, 5),
        block(64, 128, 1, activation=nn.SiLU),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(128, CLASSES),
    )


def _vgg() -> nn.Module:
    """Convolutions with bias, as torchvision's VGG has them; pooling by the maximum; a norm of vectors and dropout."""
    layers: list[nn.Module] = []
    channels = 3
    for outputs, pools in ((16, True), (32, False), (32, True), (64, False), (64, True)):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pools else []
        channels = outputs
    head = [nn.Linear(64 * 16, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, CLASSES)]
    return nn.Sequential(*layers, nn.Flatten(), *head)


def _timm() -> nn.Module:
    """``timm``'s RepVGG in small: a branch of each block is a norm alone, and activations are parts of norms."""
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    def blocks(depth: int, channels: int, stride: int) -> Any:  # noqa: ANN401 - timm is not always there
        return ByoBlockCfg(type="rep", d=depth, c=channels, s=stride)

    config = ByoModelCfg(blocks=(blocks(2, 24, 1), blocks(2, 48, 2), blocks(2, 64, 2)), stem_type="rep", stem_chs=24)
    network: nn.Module = ByobNet(config, num_classes=CLASSES)
    return network


class Regnet(nn.Module):
    """``transformers``' RegNetY, built from a configuration: grouped convolutions, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import RegNetConfig, RegNetForImageClassification

        options: dict[str, Any] = {"num_labels": CLASSES}
        config = RegNetConfig(
            **options,
            embedding_size=16,
            hidden_sizes=[32, 48, 64],
            depths=[1, 2, 1],
            groups_width=16,
            layer_type="y",
            downsample_in_first_stage=False,
        )
        self.network: Any = RegNetForImageClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


class RetinaNet(nn.Module):
    """The head of Lin et al. 2017 (arXiv 1708.02002) on a pyramid in small, with a norm of its own for each level.

    Levels share the head's convolutions. The norms behind the first convolution are the levels' own, that behind the
    second one is shared; every level classifies the image, and their mean logits are the result.
    """

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.stem = block(3, 24, stride=2)
        self.stages = nn.ModuleList(block(inputs, outputs, stride=2) for inputs, outputs in ((24, 48), (48, 96)))
        self.laterals = nn.ModuleList(nn.Conv2d(inputs, channels, 1) for inputs in (24, 48, 96))
        self.smooth = nn.ModuleList(block(channels, channels) for _ in range(3))
        self.tower = nn.ModuleList((conv(channels, channels), conv(channels, channels)))
        self.own = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        self.shared = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        levels = [self.stem(x)]
        for stage in self.stages:
            levels.append(stage(levels[-1]))
        found: list[Tensor] = []
        above: Tensor | None = None
        for level, lateral, smooth, own in reversed(
            list(zip(levels, self.laterals, self.smooth, self.own, strict=True))
        ):
            here = lateral(level)
            above = here if above is None else here + functional.interpolate(above, scale_factor=2.0)
            y = functional.relu(own(self.tower[0](smooth(above))))
            y = functional.relu(self.shared(self.tower[1](y)))
            found.append(self.classifier(y.mean((2, 3))))
        return torch.stack(found).mean(0)


class Dilated(nn.Module):
    """A residual block of a temporal convolutional network (Bai et al. 2018, arXiv 1803.01271), with batch norm."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm1d(channels), nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's result to its input."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return x + functional.relu(self.norm2(self.conv2(y)))


def _tcn(channels: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, channels, 1, bias=False),
        nn.BatchNorm1d(channels),
        *(Dilated(channels, dilation) for dilation in (1, 2, 4, 8)),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(channels, CLASSES),
    )


class Spectrum(nn.Module):
    """A perceptron on the magnitudes of a signal's frequencies; its norms, the first on the features, see vectors."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm1d(99)]
        for inputs, outputs in ((99, 128), (128, 64)):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        magnitudes = torch.fft.rfft(x, dim=2).abs().flatten(1)
        logits: Tensor = self.layers(magnitudes)
        return logits


FURTHER = (
    Architecture(name="densenet", half="tuning", kind="images", build=_densenet),
    Architecture(name="efficientnet", half="tuning", kind="images", build=_efficientnet),
    Architecture(name="vgg", half="tuning", kind="images", build=_vgg, rate=0.05),
    Architecture(name="timm", half="tuning", kind="images", build=_timm, package="timm"),
    Architecture(name="regnet", half="tuning", kind="images", build=Regnet, rate=0.05, package="transformers"),
    Architecture(name="retinanet", half="tuning", kind="images", build=RetinaNet),
    Architecture(name="tcn", half="tuning", kind="signals", build=_tcn, rate=0.05),
    Architecture(name="spectrum", half="tuning", kind="signals", build=Spectrum, rate=0.05),
)

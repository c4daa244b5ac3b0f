"""Small networks of six families of which people report faults.

Cheap copies of feature maps, stages of which one part goes around the rest, a dilated pyramid with pooled vectors
beside maps, two resolutions that exchange, a speaker's time-delay layers with norms behind ReLU and statistics over
time, and a recurrence between convolutions and a vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.architectures.registry import CLASSES, Architecture, block, conv

__all__ = ["REPORTED"]


def _ghostnet() -> nn.Module:
    """``timm``'s GhostNet (Han et al. 2020, arXiv 1911.11907): half of the channels are filtered copies."""
    from timm.models.ghostnet import GhostNet

    stages: Any = [[[3, 24, 32, 0, 2]], [[3, 72, 64, 0.25, 2]]]  # size, expanded, outputs, squeeze, stride
    network: nn.Module = GhostNet(num_classes=CLASSES, cfgs=stages, width=0.5, drop_rate=0.0)
    return network


class CrossStage(nn.Module):
    """A stage of CSPDarknet as in YOLO (Wang et al. 2019, arXiv 1911.11929): half of the channels go around blocks."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        inner = outputs // 2
        self.down = block(inputs, outputs, 3, 2, activation=nn.SiLU)
        self.around = block(outputs, inner, 1, activation=nn.SiLU)
        self.through = block(outputs, inner, 1, activation=nn.SiLU)
        self.blocks = nn.ModuleList(
            nn.Sequential(*block(inner, inner, 1, activation=nn.SiLU), *block(inner, inner, 3, activation=nn.SiLU))
            for _ in range(depth)
        )
        self.join = block(outputs, outputs, 1, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the size, send one part through residual blocks, join both."""
        x = self.down(x)
        y = self.through(x)
        for each in self.blocks:
            y = y + each(y)
        joined: Tensor = self.join(torch.cat((y, self.around(x)), 1))
        return joined


def _csp() -> nn.Module:
    return nn.Sequential(
        nn.PixelUnshuffle(2),  # the focus in front of YOLOv5
        block(12, 12, 3, 2, activation=nn.SiLU),
        CrossStage(12, 32, 1),
        CrossStage(32, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


class DeepLab(nn.Module):
    """A dilated pyramid (Chen et al. 2017, arXiv 1706.05587), whose image pooling gives its norm a value a sample."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.backbone = nn.Sequential(block(3, 12, 3, 2), block(12, 24, 3, 2), block(24, 32, 3, 2))
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(32, channels, size, padding=size // 2 * rate, dilation=rate, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            )
            for size, rate in ((1, 1), (3, 1), (3, 2))
        )
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), *block(32, channels, 1))
        self.project = block(4 * channels, 48, 1)
        self.classifier = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the mean over places."""
        x = self.backbone(x)
        pooled = self.pooling(x).expand(-1, -1, *x.shape[2:])
        y = self.project(torch.cat((*(branch(x) for branch in self.branches), pooled), 1))
        logits: Tensor = self.classifier(y.mean((2, 3)))
        return logits


class Exchange(nn.Module):
    """A module of HRNet (Wang et al. 2019, arXiv 1908.07919): a residual block for each size, then each to both."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(*block(fine, fine), conv(fine, fine), nn.BatchNorm2d(fine))
        self.coarse = nn.Sequential(*block(coarse, coarse), conv(coarse, coarse), nn.BatchNorm2d(coarse))
        self.down = nn.Sequential(conv(fine, coarse, 3, 2), nn.BatchNorm2d(coarse))
        self.up = nn.Sequential(conv(coarse, fine, 1), nn.BatchNorm2d(fine), nn.Upsample(scale_factor=2))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map of the fine size and that of the coarse one."""
        x, y = functional.relu(x + self.fine(x)), functional.relu(y + self.coarse(y))
        return functional.relu(x + self.up(y)), functional.relu(y + self.down(x))


class HRNet(nn.Module):
    """Two sizes side by side to the end, with two exchanges."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 8, 3, 2), block(8, 16, 3, 2))
        self.split = block(16, 24, 3, 2)
        self.stages = nn.ModuleList(Exchange(16, 24) for _ in range(1))
        self.head = block(40, 48, 1)
        self.classifier = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(x)
        y = self.split(x)
        for stage in self.stages:
            x, y = stage(x, y)
        whole = torch.cat((functional.avg_pool2d(x, 2), y), 1)
        logits: Tensor = self.classifier(self.head(whole).mean((2, 3)))
        return logits


def _delayed(inputs: int, outputs: int, size: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    padding = size // 2 * dilation
    convolution = nn.Conv1d(inputs, outputs, size, stride, padding, dilation)
    return nn.Sequential(convolution, nn.ReLU(), nn.BatchNorm1d(outputs))


class Speaker(nn.Module):
    """ECAPA-TDNN (Desplanques et al. 2020, arXiv 2005.07143) in small: norms behind ReLU, attentive statistics."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.stem = _delayed(3, channels, 7, stride=2)
        self.layers = nn.ModuleList(_delayed(channels, channels, 3, dilation=dilation) for dilation in (2, 3))
        self.join = _delayed(3 * channels, 48, 1)
        self.attention = nn.Sequential(_delayed(48, 16, 1), nn.Tanh(), nn.Conv1d(16, 48, 1))
        self.norm = nn.BatchNorm1d(96)
        self.embedding = nn.Linear(96, 48)
        self.embedding_norm = nn.BatchNorm1d(48)
        self.classifier = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of weighted statistics over time."""
        maps = [self.stem(x)]
        for layer in self.layers:
            maps.append(maps[-1] + layer(maps[-1]))
        y = self.join(torch.cat(maps, 1))
        weights = self.attention(y).softmax(2)
        mean = (weights * y).sum(2)
        deviation = ((weights * y.square()).sum(2) - mean.square()).clamp(min=1e-4).sqrt()
        embedded = self.embedding_norm(self.embedding(self.norm(torch.cat((mean, deviation), 1))))
        logits: Tensor = self.classifier(embedded)
        return logits


class Recurrent(nn.Module):
    """Deep Speech 2 (Amodei et al. 2015, arXiv 1512.02595) in small: convolutions, a GRU over time, norms between."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(3, channels, 9, 2, 4, bias=False),
            nn.BatchNorm1d(channels),
            nn.Hardtanh(0, 20),
            nn.Conv1d(channels, channels, 5, 4, 2, bias=False),
            nn.BatchNorm1d(channels),
            nn.Hardtanh(0, 20),
        )
        self.recurrence = nn.GRU(channels, 32, batch_first=True, bidirectional=True)
        self.norm = nn.BatchNorm1d(64)
        self.dense = nn.Sequential(nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU())
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the mean over time."""
        states, _ = self.recurrence(self.convolutions(x).transpose(1, 2))
        pooled = self.norm(states.transpose(1, 2)).mean(2)
        logits: Tensor = self.classifier(self.dense(pooled))
        return logits


REPORTED = (
    Architecture(name="ghostnet", half="tuning", kind="images", build=_ghostnet, package="timm"),
    Architecture(name="csp", half="tuning", kind="images", build=_csp),
    Architecture(name="deeplab", half="tuning", kind="images", build=DeepLab),
    Architecture(name="hrnet", half="tuning", kind="images", build=HRNet),
    Architecture(name="speaker", half="tuning", kind="signals", build=Speaker, rate=0.05),
    Architecture(name="recurrent", half="tuning", kind="signals", build=Recurrent, rate=0.05),
)

"""Small networks of four more families, to hold out.

Stages whose layers are joined once at their end, cells that were found by a search, filters over time before filters
over sensors, and convolutions between attention and feed-forward layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.architectures.registry import CLASSES, Architecture, block, conv

__all__ = ["THREADS"]


def _vovnet() -> nn.Module:
    """``timm``'s VoVNet (Lee et al. 2019, arXiv 1904.09730): each stage joins all its layers at once."""
    from timm.models.vovnet import VovNet

    config: dict[str, Any] = {
        "stem_chs": [8, 8, 16],
        "stage_conv_chs": [10, 16, 20, 24],
        "stage_out_chs": [16, 32, 48, 64],
        "layer_per_block": 2,
        "block_per_stage": [1, 1, 1, 1],
        "residual": True,
        "depthwise": False,
        "attn": "ese",
    }
    network: nn.Module = VovNet(config, num_classes=CLASSES)
    return network


def _separable(width: int, stride: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for step in (stride, 1):
        layers += [nn.ReLU(), conv(width, width, 3, step, width), conv(width, width, 1), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers)


def _dilated(width: int) -> nn.Sequential:
    filters = nn.Conv2d(width, width, 3, padding=2, dilation=2, groups=width, bias=False)
    return nn.Sequential(nn.ReLU(), filters, conv(width, width, 1), nn.BatchNorm2d(width))


def _pointwise(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class Cell(nn.Module):
    """A cell as DARTS finds them (Liu et al. 2019, arXiv 1806.09055): sums of two operations each, joined at the end.

    Its two inputs are the outputs of the two cells before it.
    """

    def __init__(self, before: int, last: int, width: int, *, halved: bool, reduces: bool) -> None:
        super().__init__()
        self.first, self.second = _pointwise(before, width, 2 if halved else 1), _pointwise(last, width)
        stride = 2 if reduces else 1
        self.a, self.b = _separable(width, stride), _separable(width, stride)
        self.c = nn.MaxPool2d(3, 2, 1) if reduces else nn.Identity()
        self.d = _dilated(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return two sums side by side."""
        x, y = self.first(x), self.second(y)
        one = self.a(x) + self.b(y)
        return torch.cat((one, self.c(x) + self.d(one)), 1)


class Darts(nn.Module):
    """Three cells; the second halves the size."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(*block(3, 8, 3, 2), conv(8, 2 * width, 3, 2), nn.BatchNorm2d(2 * width))
        self.cells = nn.ModuleList(
            (
                Cell(2 * width, 2 * width, width, halved=False, reduces=False),
                Cell(2 * width, 2 * width, 2 * width, halved=False, reduces=True),
                Cell(2 * width, 4 * width, 2 * width, halved=True, reduces=False),
            )
        )
        self.classifier = nn.Linear(4 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        before = last = self.stem(x)
        for cell in self.cells:
            before, last = last, cell(before, last)
        logits: Tensor = self.classifier(last.mean((2, 3)))
        return logits


def _eegnet(filters: int = 6, depth: int = 4) -> nn.Module:
    """EEGNet (Lawhern et al. 2018, arXiv 1611.08024): maps of sensors and time, filtered along the one, then the other.

    Dropout is left out.
    """
    inner = filters * depth
    return nn.Sequential(
        nn.Unflatten(1, (1, 3)),
        nn.Conv2d(1, filters, (1, 13), padding=(0, 6), bias=False),
        nn.BatchNorm2d(filters),
        nn.Conv2d(filters, inner, (3, 1), groups=filters, bias=False),
        nn.BatchNorm2d(inner),
        nn.ELU(),
        nn.AvgPool2d((1, 2)),
        nn.Conv2d(inner, inner, (1, 9), padding=(0, 4), groups=inner, bias=False),
        nn.Conv2d(inner, 48, 1, bias=False),
        nn.BatchNorm2d(48),
        nn.ELU(),
        nn.AvgPool2d((1, 2)),
        nn.Conv2d(48, 48, (1, 5), padding=(0, 2), groups=48, bias=False),
        nn.Conv2d(48, 48, 1, bias=False),
        nn.BatchNorm2d(48),
        nn.ELU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(48, CLASSES),
    )


class Convolution(nn.Module):
    """The convolutional part of a Conformer: a gate, a filter for each channel, a norm, a mixing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.gated = nn.LayerNorm(width), nn.Conv1d(width, 2 * width, 1)
        self.filters = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm2 = nn.BatchNorm1d(width)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Filter along time, (N, time, channels)."""
        y = functional.glu(self.gated(self.norm1(x).transpose(1, 2)), 1)
        mixed: Tensor = self.mix(functional.silu(self.norm2(self.filters(y))))
        return mixed.transpose(1, 2)


class Conformer(nn.Module):
    """Gulati et al. 2020 (arXiv 2005.08100) in small: batch norm in stem and convolutions, layer norm elsewhere."""

    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(3, width, 7, 2, 3, bias=False),
            nn.BatchNorm1d(width),
            nn.SiLU(),
            nn.Conv1d(width, width, 3, 2, 1, bias=False),
            nn.BatchNorm1d(width),
        )
        self.attention = nn.ModuleList(nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.convolutions = nn.ModuleList(Convolution(width) for _ in range(depth))
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the mean over time."""
        y = self.stem(x).transpose(1, 2)
        for attention, norm, convolution, feed in zip(
            self.attention, self.norms, self.convolutions, self.feeds, strict=True
        ):
            z = norm(y)
            y = y + attention(z, z, z, need_weights=False)[0]
            y = y + convolution(y)
            y = y + feed(y)
        logits: Tensor = self.head(y.mean(1))
        return logits


THREADS = (
    Architecture(name="vovnet", half="held out", kind="images", build=_vovnet, package="timm"),
    Architecture(name="darts", half="held out", kind="images", build=Darts),
    Architecture(name="eegnet", half="held out", kind="signals", build=_eegnet, rate=0.05),
    Architecture(name="conformer", half="held out", kind="signals", build=Conformer, rate=0.05),
)

"""Small networks of six more families.

Squeezed and expanded channels that are joined, separable convolutions in residual blocks, a perceptron over places and
channels in turn, several kernels that are summed before one norm's activation, gated and dilated convolutions with
sums of skips, and one perceptron for each member of a set.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.architectures.registry import CLASSES, Architecture, block, conv

__all__ = ["SMALL"]


class Fire(nn.Module):
    """A module of SqueezeNet (Iandola et al. 2016, arXiv 1602.07360), with a norm behind each convolution."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = block(inputs, squeezed, 1)
        self.points, self.places = block(squeezed, expanded, 1), block(squeezed, expanded, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Squeeze, expand by two sizes of filter, join."""
        y = self.squeeze(x)
        return torch.cat((self.points(y), self.places(y)), 1)


def _squeezenet() -> nn.Module:
    return nn.Sequential(
        block(3, 16, 3, 2),
        nn.MaxPool2d(2),
        Fire(16, 8, 16),
        Fire(32, 12, 24),
        nn.MaxPool2d(2),
        Fire(48, 16, 32),
        Fire(64, 16, 48),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, CLASSES),
    )


class Separable(nn.Module):
    """A block of Xception (Chollet 2017, arXiv 1610.02357): twice ReLU, a filter for each channel, a mixing, a norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for each in (inputs, outputs):
            layers += [nn.ReLU(), conv(each, each, 3, 1, each), conv(each, outputs, 1), nn.BatchNorm2d(outputs)]
        self.layers = nn.Sequential(*layers)
        self.pool = nn.MaxPool2d(3, stride, 1) if stride > 1 else nn.Identity()
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the pooled result to a shortcut."""
        added: Tensor = self.pool(self.layers(x)) + self.shortcut(x)
        return added


def _xception() -> nn.Module:
    return nn.Sequential(
        block(3, 12, 3, 2),
        Separable(12, 24, 2),
        Separable(24, 24, 1),
        Separable(24, 48, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, CLASSES),
    )


class Mixing(nn.Module):
    """A block of MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601) on (N, channels, places), with batch norm."""

    def __init__(self, channels: int, places: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm1d(channels), nn.BatchNorm1d(channels)
        self.over_places = nn.Sequential(nn.Linear(places, places), nn.GELU(), nn.Linear(places, places))
        self.over_channels = nn.Sequential(
            nn.Conv1d(channels, 2 * channels, 1), nn.GELU(), nn.Conv1d(2 * channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix places, then channels; both are added."""
        x = x + self.over_places(self.norm1(x))
        added: Tensor = x + self.over_channels(self.norm2(x))
        return added


def _mixer(channels: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, channels, 4, 4),
        nn.Flatten(2),
        *(Mixing(channels, 64) for _ in range(3)),
        nn.BatchNorm1d(channels),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(channels, CLASSES),
    )


class TextNet(nn.Module):
    """``transformers``' TextNet (Chen et al. 2021, arXiv 2111.02394): square, tall and flat filters are summed."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import TextNetConfig, TextNetForImageClassification

        options: dict[str, Any] = {"num_labels": CLASSES}
        config = TextNetConfig(
            **options,
            stem_out_channels=12,
            hidden_sizes=[12, 16, 24, 32, 48],
            conv_layer_kernel_sizes=[[[3, 3]], [[3, 1]], [[3, 3], [1, 3]], [[3, 3]]],
            conv_layer_strides=[[2], [1], [2, 1], [1]],
        )
        self.network: Any = TextNetForImageClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


class Gated(nn.Module):
    """A layer of WaveNet (van den Oord et al. 2016, arXiv 1609.03499), not causal, normed before gate and sums."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.filters = nn.Conv1d(channels, 2 * channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm1d(2 * channels)
        self.out = nn.Conv1d(channels, channels, 1, bias=False)
        self.out_norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input with the result added, and the result for the sum of skips."""
        value, gate = self.norm(self.filters(x)).chunk(2, 1)
        y = self.out_norm(self.out(torch.tanh(value) * torch.sigmoid(gate)))
        return x + y, y


class WaveNet(nn.Module):
    """Gated layers of growing dilation; the sum of what they give is classified."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(3, channels, 3, 2, 1, bias=False), nn.BatchNorm1d(channels))
        self.layers = nn.ModuleList(Gated(channels, dilation) for dilation in (1, 2, 4, 8))
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv1d(channels, 48, 1, bias=False), nn.BatchNorm1d(48), nn.ReLU(), nn.AdaptiveAvgPool1d(1)
        )
        self.classifier = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for layer in self.layers:
            x, skip = layer(x)
            skips.append(skip)
        logits: Tensor = self.classifier(self.head(torch.stack(skips).sum(0)).flatten(1))
        return logits


class Sets(nn.Module):
    """Deep sets (Zaheer et al. 2017, arXiv 1703.06114): one perceptron for every sensor, a mean, one more.

    The norms of the first see (samples, spectrum), sensors among the samples.
    """

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(*_dense(33, 96), *_dense(96, 64))
        self.all = nn.Sequential(*_dense(64, 64), nn.Linear(64, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        spectra = torch.fft.rfft(x, dim=2).abs().flatten(0, 1)
        members: Tensor = self.each(functional.layer_norm(spectra, spectra.shape[1:]))
        logits: Tensor = self.all(members.unflatten(0, x.shape[:2]).mean(1))
        return logits


def _dense(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]


SMALL = (
    Architecture(name="squeezenet", half="tuning", kind="images", build=_squeezenet),
    Architecture(name="xception", half="tuning", kind="images", build=_xception),
    Architecture(name="mixer", half="tuning", kind="images", build=_mixer, rate=0.05),
    Architecture(name="textnet", half="tuning", kind="images", build=TextNet, package="transformers"),
    Architecture(name="wavenet", half="tuning", kind="signals", build=WaveNet, rate=0.05),
    Architecture(name="sets", half="tuning", kind="signals", build=Sets, rate=0.05),
)

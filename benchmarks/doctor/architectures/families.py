"""Networks of families that the other two files lack.

Where the norm stands before the activation and the convolution in blocks of one width, where channels are split and
shuffled, where branches of several sizes are joined, where maps grow again and are joined with earlier ones, where a
recurrence or attention is between two norms, and where norms stand behind their activation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.architectures.registry import CLASSES, Architecture, block, conv

__all__ = ["FAMILIES"]


class PreActivation(nn.Module):
    """A block of a wide residual network (Zagoruyko & Komodakis 2016, arXiv 1605.07146): norm, ReLU, convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, stride=stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module | None = None if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the block's result to its input, or to a projection of the activated input."""
        y: Tensor = functional.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        added: Tensor = kept + self.conv2(functional.relu(self.norm2(self.conv1(y))))
        return added


def _wide_resnet() -> nn.Module:
    return nn.Sequential(
        conv(3, 16, stride=2),
        PreActivation(16, 32, 2),
        PreActivation(32, 32, 1),
        PreActivation(32, 64, 2),
        PreActivation(64, 64, 1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


class Shuffle(nn.Module):
    """A unit of ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.splits = stride == 1
        into = half if self.splits else inputs
        self.right = nn.Sequential(
            *block(into, half, 1),
            *(conv(half, half, stride=stride, groups=half), nn.BatchNorm2d(half)),
            *block(half, half, 1),
        )
        left = [conv(inputs, inputs, stride=stride, groups=inputs), nn.BatchNorm2d(inputs), *block(inputs, half, 1)]
        self.left = nn.Sequential(*([] if self.splits else left))

    def forward(self, x: Tensor) -> Tensor:
        """Run one half of the channels, or at a stride all of them twice, and mix both results."""
        first, second = x.chunk(2, 1) if self.splits else (x, x)
        y = torch.stack((self.left(first), self.right(second)), 2)
        return y.flatten(1, 2)


def _shufflenet() -> nn.Module:
    return nn.Sequential(
        block(3, 16, stride=2),
        Shuffle(16, 48, 2),
        Shuffle(48, 48, 1),
        Shuffle(48, 48, 1),
        Shuffle(48, 96, 2),
        Shuffle(96, 96, 1),
        block(96, 128, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, CLASSES),
    )


class Inception(nn.Module):
    """A module of the network that batch norm was first shown on (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.one = block(inputs, width, 1)
        self.three = nn.Sequential(block(inputs, width, 1), block(width, width))
        self.five = nn.Sequential(block(inputs, width // 2, 1), block(width // 2, width), block(width, width))
        self.pooled = nn.Sequential(nn.AvgPool2d(3, 1, 1), block(inputs, width // 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Join what four branches see."""
        return torch.cat((self.one(x), self.three(x), self.five(x), self.pooled(x)), 1)


def _inception() -> nn.Module:
    return nn.Sequential(
        block(3, 24, stride=2),
        nn.MaxPool2d(3, 2, 1),
        Inception(24, 24),
        nn.MaxPool2d(3, 2, 1),
        Inception(84, 24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(84, CLASSES),
    )


class UNet(nn.Module):
    """Ronneberger et al. 2015 (arXiv 1505.04597) with batch norm; it classifies by the mean of its last maps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16, stride=2)
        self.down1 = nn.Sequential(nn.MaxPool2d(2), block(16, 32), block(32, 32))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), block(32, 64), block(64, 64))
        self.up1, self.join1 = nn.ConvTranspose2d(64, 32, 2, 2), block(64, 32)
        self.up2, self.join2 = nn.ConvTranspose2d(32, 8, 2, 2), block(24, 24)
        self.classifier = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        high = self.stem(x)
        middle = self.down1(high)
        low = self.down2(middle)
        middle = self.join1(torch.cat((self.up1(low), middle), 1))
        high = self.join2(torch.cat((self.up2(middle), high), 1))
        logits: Tensor = self.classifier(high.mean((2, 3)))
        return logits


class Speech(nn.Module):
    """Deep Speech 2 in small (Amodei et al. 2016, arXiv 1512.02595): norms over batch and time around recurrences."""

    def __init__(self, channels: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(nn.Conv1d(3, 32, 9, 2, 4, bias=False), nn.BatchNorm1d(32), nn.Hardtanh(0, 20)),
            *(nn.Conv1d(32, channels, 7, 2, 3, bias=False), nn.BatchNorm1d(channels), nn.Hardtanh(0, 20)),
        )
        self.first = nn.GRU(channels, channels, batch_first=True)
        self.norm = nn.BatchNorm1d(channels)
        self.second = nn.GRU(channels, channels, batch_first=True)
        self.last = nn.BatchNorm1d(channels)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        y, _ = self.first(self.stem(x).transpose(1, 2))
        y, _ = self.second(self.norm(y.transpose(1, 2)).transpose(1, 2))
        logits: Tensor = self.classifier(self.last(y.transpose(1, 2)).mean(2))
        return logits


class Inverted1d(nn.Module):
    """An inverted residual over time, with squeeze and excitation left out."""

    def __init__(self, inputs: int, outputs: int, stride: int, factor: int = 3) -> None:
        super().__init__()
        wide = factor * inputs
        self.layers = nn.Sequential(
            *(nn.Conv1d(inputs, wide, 1, bias=False), nn.BatchNorm1d(wide), nn.SiLU()),
            *(nn.Conv1d(wide, wide, 7, stride, 3, groups=wide, bias=False), nn.BatchNorm1d(wide), nn.SiLU()),
            *(nn.Conv1d(wide, outputs, 1, bias=False), nn.BatchNorm1d(outputs)),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Expand, filter each channel, project."""
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


def _mobile1d() -> nn.Module:
    """Inverted residuals over time, and a norm of vectors in the head."""
    return nn.Sequential(
        *(nn.Conv1d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm1d(16), nn.SiLU()),
        *(Inverted1d(16, 24, 1), Inverted1d(24, 24, 1), Inverted1d(24, 40, 2), Inverted1d(40, 40, 1)),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        *(nn.Linear(40, 64, bias=False), nn.BatchNorm1d(64), nn.SiLU(), nn.Linear(64, CLASSES)),
    )


class PatchTST(nn.Module):
    """``transformers``' PatchTST (Nie et al. 2023, arXiv 2211.14730): batch norm of tokens in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import PatchTSTConfig, PatchTSTForClassification

        options: dict[str, Any] = {"num_targets": CLASSES}
        config = PatchTSTConfig(
            **options,
            num_input_channels=3,
            context_length=64,
            patch_length=16,
            patch_stride=8,
            num_hidden_layers=2,
            d_model=48,
            num_attention_heads=4,
            ffn_dim=96,
            pooling_type="mean",
            norm_type="batchnorm",
            use_cls_token=False,
        )
        self.network: Any = PatchTSTForClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.network(past_values=x.transpose(1, 2)).prediction_logits
        return logits


class LeViT(nn.Module):
    """``transformers``' LeViT (Graham et al. 2021, arXiv 2104.01136): attention whose every projection has a norm."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import LevitConfig, LevitForImageClassification

        options: dict[str, Any] = {"num_labels": CLASSES, "down_ops": [["Subsample", 16, 4, 2, 2, 2], [""]]}
        config = LevitConfig(
            **options,
            image_size=64,
            hidden_sizes=[64, 96],
            num_attention_heads=[2, 3],
            depths=[2, 2],
            key_dim=[16, 16],
            drop_path_rate=0,
            mlp_ratio=[2, 2],
            attention_ratio=[2, 2],
        )
        self.network: Any = LevitForImageClassification(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of the image at twice its size."""
        logits: Tensor = self.network(pixel_values=functional.interpolate(x, scale_factor=2.0)).logits
        return logits


def _convmixer() -> nn.Module:
    """``timm``'s ConvMixer (Trockman & Kolter 2022, arXiv 2201.09792) in small: norms stand behind GELU."""
    from timm.models.convmixer import ConvMixer

    network: nn.Module = ConvMixer(dim=96, depth=4, kernel_size=3, patch_size=4, num_classes=CLASSES)
    return network


FAMILIES = (
    Architecture(name="wide resnet", half="tuning", kind="images", build=_wide_resnet),
    Architecture(name="shufflenet", half="tuning", kind="images", build=_shufflenet),
    Architecture(name="inception", half="tuning", kind="images", build=_inception),
    Architecture(name="unet", half="tuning", kind="images", build=UNet, rate=0.05),
    Architecture(name="speech", half="tuning", kind="signals", build=Speech, rate=0.05),
    Architecture(name="mobile1d", half="tuning", kind="signals", build=_mobile1d, rate=0.05),
    Architecture(name="patchtst", half="tuning", kind="signals", build=PatchTST, rate=0.05, package="transformers"),
    Architecture(name="levit", half="tuning", kind="images", build=LeViT, rate=0.05, package="transformers"),
    Architecture(name="convmixer", half="tuning", kind="images", build=_convmixer, rate=0.05, package="timm"),
)

"""A network and images small enough to be reckoned with by hand, for the ways to adapt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import steadynorm

__all__ = ["CLASSES", "blob_network", "blobs", "calibration_batches"]

CLASSES = 6
SIZE = 6
SCALE, OFFSET = 0.25, 3.0


def blobs(count: int, *, classes: int = CLASSES, seed: int = 0, shifted: bool = False) -> tuple[Tensor, Tensor]:
    """Images (N, 6, 6, 6) whose channel of the class is 2 higher, classes in turn; and their labels.

    Shifted ones are four times flatter, and 3 higher in the channel of class 0.
    """
    labels = torch.arange(count) % classes
    noise = torch.randn(count, CLASSES, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    x = 2 * nn.functional.one_hot(labels, CLASSES)[:, :, None, None] + 0.6 * noise
    if shifted:
        x = SCALE * x
        x[:, 0] += OFFSET
    return x, labels


def blob_network(*, ours: bool = True) -> nn.Sequential:
    """Normalizes by the statistics of the blobs, and tells their classes apart by the highest channel."""
    norm = steadynorm.BatchNorm2d(CLASSES) if ours else nn.BatchNorm2d(CLASSES)
    linear = nn.Linear(CLASSES, CLASSES)
    x, _ = blobs(6000, seed=1)
    with torch.no_grad():
        linear.weight.copy_(4 * torch.eye(CLASSES))
        linear.bias.zero_()
        norm.running_mean.copy_(x.mean((0, 2, 3)))
        norm.running_var.copy_(x.var((0, 2, 3)))
    return nn.Sequential(norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear).eval()


def calibration_batches(count: int = 600) -> list[tuple[Tensor, Tensor]]:
    """Training images, in batches of 60."""
    x, labels = blobs(count, seed=2)
    return list(zip(x.split(60), labels.split(60), strict=True))

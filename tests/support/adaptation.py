"""A network and images small enough to compute by hand, for tests of the methods of adaptation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import steadynorm

__all__ = ["CLASSES", "blob_network", "blobs", "calibration_batches", "deep_blob_network", "in_runs"]

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


def deep_blob_network() -> nn.Sequential:
    """Normalizes a second time, rectified between, and tells classes apart less surely."""
    first, (norm, pool, flatten, linear) = nn.BatchNorm2d(CLASSES), blob_network(ours=False)
    first.load_state_dict(norm.state_dict())
    x, _ = blobs(6000, seed=1)
    with torch.no_grad():
        linear.weight.mul_(0.3)
        y = torch.relu(first.eval()(x))
        norm.running_mean.copy_(y.mean((0, 2, 3)))
        norm.running_var.copy_(y.var((0, 2, 3)))
    return nn.Sequential(first, nn.ReLU(), norm, pool, flatten, linear).eval()


def in_runs(count: int, *, seed: int = 0, shifted: bool = False) -> tuple[Tensor, Tensor]:
    """The same blobs, class after class, and noise on each image as a whole that makes single ones hard to tell."""
    x, labels = blobs(count, seed=seed, shifted=shifted)
    order = labels.argsort(stable=True)
    generator = torch.Generator().manual_seed(seed + 1)
    offset = torch.randn(count, CLASSES, 1, 1, generator=generator)
    return (x + (SCALE if shifted else 1) * offset)[order], labels[order]

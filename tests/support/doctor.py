"""A network that learns in a moment, and batches for it."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from steadynorm.surgery import recalibrate_

__all__ = [
    "HOSTILE",
    "batches",
    "faulty_network",
    "hostile_network",
    "images",
    "save_images",
    "trained_network",
    "wiped_network",
]


def images(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of two classes that a convolution can tell apart: stripes across, and stripes down."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 2
    wave = torch.sin(torch.arange(12.0)).expand(12, 12)
    waves = torch.stack((wave, wave.T))[labels].unsqueeze(1)
    return waves + 0.8 * torch.randn(number, 1, 12, 12, generator=generator), labels


def batches(number: int = 8, size: int = 32, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Batches of such images."""
    x, y = images(number * size, seed)
    return list(zip(x.split(size), y.split(size), strict=True))


def save_images(path: Path, number: int = 8, size: int = 32) -> Path:
    """Such images as an .npz file, as the network takes them."""
    x, y = images(number * size, seed=1)
    np.savez(path, x=x.numpy(), y=y.numpy())
    return path


def trained_network() -> nn.Sequential:
    """Trained for a moment, with the statistics of its last weights, in evaluation."""
    return copy.deepcopy(_trained())


def wiped_network() -> nn.Sequential:
    """The trained network without its statistics."""
    model: Any = trained_network()
    model[1].reset_running_stats()
    model[4].reset_running_stats()
    return model


@functools.cache
def _trained() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches(60):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    recalibrate_(model, batches(16, seed=2))
    return model.eval()


def faulty_network() -> nn.Sequential:
    """The trained network with a fault of each severity: NaN, lost statistics, eps of another framework."""
    model: Any = trained_network()
    with torch.no_grad():
        model[1].running_var[3] = torch.nan
        model[4].reset_running_stats()
        model[4].eps = 0.3
        model[1].weight[2] = model[4].weight[2] = 0.0
    return model


HOSTILE = {
    "html": "<img src=x onerror=alert(1)>",
    "escape": "a\x1b[2J\x1b]0;owned\x07",
    "newline": "a\nHealthy: no fault was found",
    "rich": "[red]a[/red] [link=https://x/y]b[/link]",
    "markdown": "[click](https://x/y) {0} `",
    "bidi": "a\N{RIGHT-TO-LEFT OVERRIDE}b",
    "script": "</script><script>alert(1)</script>",
}
"""Kind of harm -> name of a module that would do it where names are not made inert."""


def hostile_network(kind: str) -> nn.Module:
    """A network whose batch norm has such a name and lost its statistics."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3))
    model.add_module(HOSTILE[kind], nn.BatchNorm2d(4))
    norm: Any = model[1]
    norm.num_batches_tracked.fill_(100)
    return model.eval()


def untrained_network() -> nn.Sequential:
    """The network with other weights, in evaluation."""
    model = trained_network()
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    return model

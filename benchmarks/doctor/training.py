"""Data, and networks trained on them; both are kept, so that a second run does not train again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.architectures import ARCHITECTURES, Architecture, Kind
from steadynorm.lab.data.images import Images
from steadynorm.lab.data.loading import load_dataset

__all__ = ["Data", "accuracy", "data_of", "fit_", "step_", "train_", "trained"]

TRAINING, VALIDATION, TEST = 20_000, 1_024, 2_000


@dataclass(frozen=True, kw_only=True)
class Data:
    """Inputs and labels.

    Args:
        train: inputs and labels that networks are trained on.
        validation: those that the doctor is given.
        test: those that only accuracies are measured on.
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def batches(self, size: int = 64, number: int = 8, *, of: str = "validation") -> list[tuple[Tensor, Tensor]]:
        """Return the first batches of a part."""
        inputs, labels = getattr(self, of)
        return [(inputs[at : at + size], labels[at : at + size]) for at in range(0, size * number, size)]

    def fed(self, feed: Callable[[Tensor], Tensor]) -> Data:
        """Return the same data, their test inputs changed."""
        return replace(self, test=(feed(self.test[0]), self.test[1]))


def data_of(kind: Kind, folder: Path | None) -> Data:
    """Load CIFAR-10, or make signals."""
    return _images(folder) if kind == "images" else _signals()


def _images(folder: Path | None) -> Data:
    dataset = load_dataset("cifar10", data_dir=folder)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (dataset.mean, dataset.std))

    def part(images: Images, first: int, count: int) -> tuple[Tensor, Tensor]:
        rows = slice(first, first + count)
        return ((images.pixels[rows].float() / 255 - mean) / std).contiguous(), images.labels[rows]

    return Data(
        train=part(dataset.train, 0, TRAINING),
        validation=part(dataset.validation, 0, VALIDATION),
        test=part(dataset.validation, VALIDATION, TEST),
    )


def _signals() -> Data:
    """Draw sums of two sines in noise: two frequencies for each class, seen by three sensors of other gains."""
    generator = torch.Generator().manual_seed(7)
    count, length = TRAINING + VALIDATION + TEST, 64
    labels = torch.randint(0, 10, (count,), generator=generator)
    time = torch.arange(length) / length
    frequencies = torch.stack((2 + torch.arange(10), 12 - torch.arange(10) * 0.7), 1)[labels]
    phases = torch.rand(count, 2, generator=generator) * 2 * math.pi
    waves = torch.sin(2 * math.pi * frequencies.unsqueeze(2) * time + phases.unsqueeze(2))  # (count, 2, length)
    gains = torch.tensor([[1.0, 0.3], [0.5, 0.8], [-0.4, 1.0]])
    x = torch.einsum("sw,nwt->nst", gains, waves) + 1.6 * torch.randn(count, 3, length, generator=generator)
    cuts = (TRAINING, VALIDATION, TEST)
    train, validation, test = zip(x.split(cuts), labels.split(cuts), strict=True)
    return Data(train=train, validation=validation, test=test)


def train_(
    model: nn.Module,
    data: Data,
    *,
    seed: int,
    epochs: float = 4,
    batch_size: int = 64,
    rate: float = 0.1,
    mirrors: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:
    """Train by SGD on a one-cycle schedule; images are mirrored at random, if they may be."""
    generator = torch.Generator().manual_seed(seed)
    model.train()
    inputs, labels = data.train
    steps = int(epochs * len(inputs) / batch_size)
    given = optimizer or torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
    for step, rows in zip(range(steps), _rows(len(inputs), batch_size, generator), strict=False):
        for group in given.param_groups:
            group["lr"] = rate * _one_cycle(step / steps)
        x = inputs[rows]
        if mirrors and x.dim() == 4:
            x = torch.where(torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5, x, x.flip(3))
        step_(model, given, x, labels[rows])
    return model.eval()


def fit_(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    rate: float,
    decay: float = 5e-4,
    smoothing: float = 0.0,
    optimizer: torch.optim.Optimizer | None = None,
    after: Callable[[], object] = lambda: None,
) -> nn.Module:
    """Continue training by SGD at one rate, on batches in order; ``after`` is called after each step."""
    model.train()
    given = optimizer or torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=decay)
    for x, labels in batches:
        step_(model, given, x, labels, smoothing)
        after()
    return model.eval()


def step_(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor, smoothing: float = 0.0
) -> None:
    """Take one step on a batch, in the modes that are set."""
    optimizer.zero_grad()
    functional.cross_entropy(model(x), labels, label_smoothing=smoothing).backward()
    optimizer.step()


def _one_cycle(share: float) -> float:
    return share / 0.2 if share < 0.2 else 0.5 * (1 + math.cos(math.pi * (share - 0.2) / 0.8))


def _rows(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count, generator=generator)[: count // size * size].split(size)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Measure the fraction of test samples classified correctly, in the model's own modes, 200 at a time."""
    right = [
        (model(x).argmax(1) == labels).float().sum()
        for x, labels in zip(data.test[0].split(200), data.test[1].split(200), strict=True)
    ]
    return float(sum(right)) / len(data.test[0])


def trained(name: str, seed: int, data: Data, folder: Path) -> nn.Module:
    """Return a trained network, from the folder if it is there."""
    architecture: Architecture = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model, path = architecture.build(), folder / f"{name}-{seed}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    train_(model, data, seed=seed, rate=architecture.rate)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model

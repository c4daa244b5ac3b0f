"""Faulty trainings: how their batches change, from which step, or their learning rate."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.watch.trainings import Batch, Training, mirrored, plain_net

__all__ = ["FAULTY", "Faulty"]


@dataclass(frozen=True, kw_only=True)
class Faulty:
    """A training and its fault.

    Args:
        name: in tables.
        training: without it.
        begins: step at which it begins.
        ends: step at which it ends; the training's last one if it stays.
        disturb: changes the batches.
        noticed: checks that notice it.
    """

    name: str
    training: Training
    begins: int
    ends: int
    disturb: Callable[[Iterable[Batch]], Iterable[Batch]]
    noticed: tuple[str, ...]


STEPS = 1_000
PLAIN = Training(name="plain", source="small images", build=plain_net, steps=STEPS, augment=mirrored)


def poisoned(batches: Iterable[Batch], *, every: int = 500, first: int = 190) -> Iterator[Batch]:
    """Set a value of one batch in ``every`` to NaN."""
    for step, (x, labels) in enumerate(batches):
        if step % every == first:
            x = x.clone()
            x[0, 0, 0, 0] = torch.nan
        yield x, labels


def ordered(batches: Iterable[Batch], *, begins: int, ends: int, steps: int = 15, collect: int = 10) -> Iterator[Batch]:
    """Sort the batches of a stretch by class: ``steps`` batches of one class, then of the next."""
    source = iter(batches)
    yield from itertools.islice(source, begins)
    at = begins
    while at < ends:
        x, labels = (torch.cat(parts) for parts in zip(*itertools.islice(source, 2 * collect), strict=True))
        size = len(x) // (2 * collect)
        wanted = (at // steps) % 10
        rows = (labels == wanted).nonzero()[:, 0]
        while len(rows) < size:
            rows = rows.repeat(2)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(at))[:size]]
        yield x[rows], labels[rows]
        at += 1
    yield from source


def changed(batches: Iterable[Batch], change: Callable[[Tensor], Tensor], *, until: int) -> Iterator[Batch]:
    """Change the inputs up to a step."""
    for step, (x, labels) in enumerate(batches):
        yield (change(x) if step < until else x), labels


def darker(x: Tensor) -> Tensor:
    """Reduce contrast and brightness, and add noise."""
    generator = torch.Generator().manual_seed(int(x.abs().sum() * 1_000) % 2**31)
    return 0.4 * x - 1.0 + 0.2 * torch.randn(x.shape, generator=generator)


def falling(share: float) -> float:
    """Divide the rate by a hundred after six tenths."""
    return 1.0 if share < 0.6 else 0.01


FAULTY = (
    Faulty(
        name="a NaN in one batch of 500",
        training=PLAIN,
        begins=190,
        ends=STEPS,
        disturb=poisoned,
        noticed=("nonfinite-statistics",),
    ),
    Faulty(
        name="batches of one class for a while",
        training=replace(PLAIN, schedule=falling),
        begins=700,
        ends=850,
        disturb=lambda batches: ordered(batches, begins=700, ends=850),
        noticed=("single-class-batch",),
    ),
    Faulty(
        name="strong augmentation, off half-way",
        training=replace(PLAIN, momentum=0.01),
        begins=500,
        ends=STEPS,
        disturb=lambda batches: changed(batches, darker, until=500),
        noticed=("statistics-lag", "train-eval-gap", "outlier-statistics"),
    ),
    Faulty(
        name="a learning rate at the edge",
        training=replace(PLAIN, rate=0.5, momentum=0.01),
        begins=0,
        ends=STEPS,
        disturb=lambda batches: batches,
        noticed=("statistics-lag", "train-eval-gap"),
    ),
)

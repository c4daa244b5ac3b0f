"""What a fault is put into, and what is given to the doctor."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.doctor.training import Data

__all__ = ["Case", "Subject", "norms_of", "put"]

Norm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A healthy network, to be changed.

    Args:
        model: in evaluation.
        data: of its training.
        draw: chooses layers and channels.
        rate: learning rate of its training.
    """

    model: nn.Module
    data: Data
    draw: random.Random
    rate: float

    def one_norm(self) -> tuple[str, Norm]:
        """Choose a layer."""
        return self.draw.choice(norms_of(self.model))

    def follow_(self, batches: list[Tensor]) -> None:
        """Let the statistics follow batches, in training mode and without gradient."""
        self.model.train()
        with torch.no_grad():
            for x in batches:
                self.model(x)
        self.model.eval()

    def inputs(self, size: int, number: int) -> list[Tensor]:
        """Give training batches without labels."""
        x = self.data.train[0]
        rows = torch.tensor([self.draw.randrange(len(x)) for _ in range(size * number)])
        return list(x[rows].split(size))


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the doctor is given.

    Args:
        model: in the mode in which it is used.
        batches: as :func:`steadynorm.diagnose` takes them; None for what it can say without.
        options: of ``diagnose``.
        layers: that the fault lies in; None where it lies in the whole model.
    """

    model: nn.Module
    batches: list[tuple[Tensor, Tensor]] | None
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: frozenset[str] | None = None


def norms_of(model: nn.Module) -> list[tuple[str, Norm]]:
    """List the batch norms by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Norm)]


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set a module in the place of another."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)

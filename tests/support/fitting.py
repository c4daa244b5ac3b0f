"""A small network with batch norms and its data, for the tests of training frameworks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["BATCH", "CLASSES", "data", "drawn_state", "loader_of", "network", "running", "same_state"]

BATCH, CLASSES = 8, 3


def network(norm: Any = nn.BatchNorm1d) -> nn.Sequential:
    """Two batch norms behind linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), norm(6), nn.ReLU(), nn.Linear(6, 6), norm(6), nn.ReLU(), nn.Linear(6, CLASSES)
    )


def data(samples: int = 48) -> tuple[Tensor, Tensor]:
    """Inputs that are far from the running statistics' start, and classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, 4, generator=generator) * 3 + 2, torch.arange(samples) % CLASSES


def loader_of(samples: int = 48, **options: Any) -> DataLoader[Any]:
    """Batches of eight."""
    return DataLoader(TensorDataset(*data(samples)), batch_size=BATCH, **options)


def running(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the running means and variances."""
    return {name: each.clone() for name, each in model.named_buffers() if "running_" in name}


def same_state(one: nn.Module, other: nn.Module, *, but: str = "nothing is left out") -> bool:
    """Whether two models have the same state, bit for bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine if but not in key)


def drawn_state() -> tuple[Any, ...]:
    """The state of every source of random numbers, to be compared."""
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@contextmanager
def none_drawn() -> Iterator[None]:
    """No random number is drawn within, or all are put back."""
    before = drawn_state()
    yield
    assert drawn_state() == before

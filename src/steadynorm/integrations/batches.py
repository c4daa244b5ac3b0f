"""Take the first batches of a loader without disturbing a training that iterates over it."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

__all__ = ["FirstBatches"]

_DEEPEST = 4
"""Largest nesting depth of samplers that is searched."""


class FirstBatches:
    """The first batches of a loader, repeatable, without an effect on a training that uses the same loader.

    A loader with persistent workers has a single iterator, which a second loop would take from the training;
    accelerate's loaders report their position to the gradient accumulation. Therefore a copy of the loader is iterated
    (for accelerate, of the inner one). Each time the samplers start from their state at construction: a shuffling
    loader yields the same batches again.

    Args:
        batches: a loader, or a list of batches.
        number: largest number of batches; None takes all.
        caller: name of the caller, for messages.

    Raises:
        TypeError: not iterable, or an iterator, which can be iterated only once.
        ValueError: ``number`` is below 1; the loader's data set is a stream, from which batches would be missing.
    """

    def __init__(self, batches: Iterable[Any], number: int | None, *, caller: str) -> None:
        if number is not None and number < 1:
            raise ValueError(f"{caller}: number must be at least 1, got {number}.")
        if not isinstance(batches, Iterable) or isinstance(batches, Iterator | torch.Tensor | dict | str):
            raise TypeError(
                f"{caller}: batches must be a loader or a list of batches, to be gone through several times, got "
                f"{type(batches).__name__}."
            )
        loader: Any = getattr(batches, "base_dataloader", batches)
        if isinstance(getattr(loader, "dataset", None), Iterator):
            raise ValueError(
                f"{caller}: the loader's data set must start again in each loop, got {type(loader.dataset).__name__}, "
                "an iterator: the training would miss what is taken from it. Give batches=."
            )
        self._loader, self._number = _apart(loader), number
        self._states = [(owner, _state_of(owner)) for owner in _owners(loader, _DEEPEST)]

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches, from the first."""
        self._rewind()
        return islice(iter(self._loader), self._number)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore the samplers afterwards, and the random states of Python and NumPy, which transforms use."""
        drawn = random.getstate(), np.random.get_state()
        try:
            yield
        finally:
            self._rewind()
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])

    def _rewind(self) -> None:
        for owner, (generator, epoch) in self._states:
            if generator is not None:
                owner.generator.set_state(generator)
            if epoch is not None:
                owner.epoch = epoch


def _apart(loader: Any) -> Any:  # noqa: ANN401 (any iterable)
    """Return a copy of a loader that shares everything but the workers."""
    if not isinstance(loader, DataLoader):
        return loader
    twin = copy.copy(loader)
    vars(twin).update(_iterator=None, persistent_workers=False)  # torch lets neither be set
    return twin


def _owners(loader: Any, depth: int) -> Iterator[Any]:  # noqa: ANN401 (loaders and samplers of any class)
    """Yield a loader and its nested samplers: all objects that may hold random state."""
    yield loader
    for name in ("sampler", "batch_sampler"):
        inner = getattr(loader, name, None)
        if inner is not None and depth:
            yield from _owners(inner, depth - 1)


def _state_of(owner: Any) -> tuple[torch.Tensor | None, int | None]:  # noqa: ANN401 (likewise)
    generator, epoch = getattr(owner, "generator", None), getattr(owner, "epoch", None)
    return (
        generator.get_state() if isinstance(generator, torch.Generator) else None,
        epoch if isinstance(epoch, int) else None,
    )

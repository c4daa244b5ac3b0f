"""Iterate over batches, several times if needed, and feed them to a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

__all__ = ["Batch", "Batches", "Forward", "evaluating", "feed", "randomness_kept", "unwrapped"]

Batch = Any
"""A batch as the loader yields it, or the arguments of the model."""
Forward = Callable[[nn.Module, Batch], Any]
"""(model, batch) -> output: runs the model on a batch."""


def feed(model: nn.Module, batch: Any) -> Any:  # noqa: ANN401 (any batch, any output)
    """Run a model on a batch, on the device of the model's first parameter.

    A tensor is passed as the argument; from a tuple or list, the first item (as in (input, target)); a mapping as
    keyword arguments.

    Raises:
        TypeError: the batch is anything else.
    """
    first = next(chain(model.parameters(), model.buffers()), None)
    batch = batch if first is None else _moved(batch, first.device)
    if isinstance(batch, Tensor | PackedSequence):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list) and batch:
        return model(batch[0])
    raise TypeError(
        "feed: a batch must be a tensor, a tuple or list that begins with the model's input, or a mapping of its "
        f"arguments, got {type(batch).__name__}. Say how to run the model on it: forward=lambda model, batch: ...."
    )


class Batches:
    """Batches that can be iterated again: those of an iterator are kept as they come.

    Args:
        batches: a loader, a list, a generator.
        verb: name of the operation, for messages.

    Raises:
        TypeError: a single batch, which iteration would split.
    """

    def __init__(self, batches: Iterable[Any], verb: str) -> None:
        if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
            raise TypeError(
                f"{verb}: batches must be an iterable of batches, got {type(batches).__name__}. Put a single batch "
                "into a list."
            )
        self._source, self._verb = batches, verb
        self._kept: list[Any] = []

    @property
    def source(self) -> object:
        """The given iterable."""
        return self._source

    def __iter__(self) -> Iterator[Any]:
        """Iterate over all batches, from the first."""
        return chain(self._kept, self._rest()) if isinstance(self._source, Iterator) else iter(self._source)

    def _rest(self) -> Iterator[Any]:
        for batch in self._source:
            self._kept.append(batch)
            yield batch

    def first(self, number: int) -> Iterator[Any]:
        """Iterate over the first ``number`` batches again.

        Raises:
            ValueError: there are fewer than before.
        """
        found = 0
        for batch in islice(self, number):
            found += 1
            yield batch
        if found < number:
            raise ValueError(
                f"{self._verb}: a second pass must give as many batches, got {found} after {number} in the first. "
                "Give a list, a loader, or a generator."
            )

    @contextmanager
    def randomness_kept(self, model: nn.Module) -> Iterator[None]:
        """Restore on exit the state of torch's random number generators, and of the loader's own.

        So a shuffling loader gives the same batches each time.
        """
        owners = (self._source, getattr(self._source, "sampler", None))
        found = [each for owner in owners if isinstance(each := getattr(owner, "generator", None), torch.Generator)]
        states = [each.get_state() for each in found]
        try:
            with randomness_kept(model):
                yield
        finally:
            for each, state in zip(found, states, strict=True):
                each.set_state(state)


@contextmanager
def randomness_kept(model: nn.Module) -> Iterator[None]:
    """Restore on exit the state of torch's random number generators, on the CPU and on the model's devices."""
    devices = {each.device for each in chain(model.parameters(), model.buffers()) if each.device.type != "meta"}
    others = sorted({device.type for device in devices} - {"cpu", "mps"})
    indices = [device.index for device in devices if others and device.type == others[0]]
    with torch.random.fork_rng(devices=indices, device_type=others[0] if others else "cuda"):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, without gradient or compiler, and restore each mode on exit."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False  # .eval() may be more than a flag: some models merge weights in it
        compiles = "torch._dynamo" in sys.modules  # importing it takes seconds
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if compiles else nullcontext():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the plain model: DistributedDataParallel broadcasts buffers in a forward, which not all ranks may run."""
    inner = {
        "DistributedDataParallel": "module",
        "DataParallel": "module",
        "AveragedModel": "module",
        "OptimizedModule": "_orig_mod",
    }
    while type(model).__name__ in inner and type(model).__module__.startswith("torch."):
        model = getattr(model, inner[type(model).__name__])
    return model


def _moved(batch: Any, device: torch.device) -> Any:  # noqa: ANN401 (any batch of a loader)
    """Move a batch's tensors to a device."""
    if isinstance(batch, Tensor | PackedSequence):
        return batch.to(device)  # type: ignore[arg-type]  # PackedSequence's annotation is narrower
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        return [_moved(value, device) for value in batch]
    return batch

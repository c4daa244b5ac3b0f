"""How batches are gone through, several times if need be, and how one is fed to a model."""

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

    A tensor is passed as the argument; of a tuple or list, the first item (as in (input, target)); a mapping as keyword
    arguments.

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
    """Batches that can be gone through again: what gives them only once is kept as it comes.

    Args:
        batches: a loader, a list, a generator.
        verb: that wants them, for messages.

    Raises:
        TypeError: a single batch, which would be taken apart.
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
        """What was given."""
        return self._source

    def __iter__(self) -> Iterator[Any]:
        """Go through all of them, from the first."""
        return chain(self._kept, self._rest()) if isinstance(self._source, Iterator) else iter(self._source)

    def _rest(self) -> Iterator[Any]:
        for batch in self._source:
            self._kept.append(batch)
            yield batch

    def first(self, number: int) -> Iterator[Any]:
        """Go through the first so many again.

        Raises:
            ValueError: there are fewer than before.
        """
        found = 0
        for batch in islice(self, number):
            found += 1
            yield batch
        if found < number:
            raise ValueError(
                f"{self._verb}: batches must be there again in a second pass, got {found} after {number} in the first. "
                "Give a list, a loader, or a generator."
            )

    @contextmanager
    def randomness_kept(self, model: nn.Module) -> Iterator[None]:
        """Put back afterwards the state of torch's random numbers, and of the loader's own.

        A shuffling loader so gives the same batches each time.
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
    """Put back afterwards the state of torch's random numbers, on the CPU and on the model's devices."""
    devices = {each.device for each in chain(model.parameters(), model.buffers()) if each.device.type != "meta"}
    others = sorted({device.type for device in devices} - {"cpu", "mps"})
    indices = [device.index for device in devices if others and device.type == others[0]]
    with torch.random.fork_rng(devices=indices, device_type=others[0] if others else "cuda"):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Let every module evaluate, without gradient and not compiled; each has its own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False  # .eval() may be more than a flag: some models merge weights in it
        compiles = "torch._dynamo" in sys.modules  # to import it takes seconds
        with torch.no_grad(), torch.compiler.set_stance("force_eager") if compiles else nullcontext():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def unwrapped(model: nn.Module) -> nn.Module:
    """Give the plain model: DistributedDataParallel sends buffers around in a forward, which ranks need not share."""
    inner = {
        "DistributedDataParallel": "module",
        "DataParallel": "module",
        "AveragedModel": "module",
        "OptimizedModule": "_orig_mod",
    }
    while type(model).__name__ in inner and type(model).__module__.startswith("torch."):
        model = getattr(model, inner[type(model).__name__])
    return model


def _moved(batch: Any, device: torch.device) -> Any:  # noqa: ANN401 (whatever a loader gives)
    """Give the batch with its tensors on a device."""
    if isinstance(batch, Tensor | PackedSequence):
        return batch.to(device)  # type: ignore[arg-type]  # of PackedSequence, which is annotated for less
    if isinstance(batch, Mapping):
        return {key: _moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_moved(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        return [_moved(value, device) for value in batch]
    return batch

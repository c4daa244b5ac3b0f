"""Compile the CPU kernels of a model's layers before the first batch."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from steadynorm.layers.base import BatchNormBase
from steadynorm.ops.dispatch import backend, count_compilations

__all__ = ["Compiled", "MemoryLayout", "warmup"]

MemoryLayout = Literal["contiguous", "channels_last"]
"""Memory layout of an input."""
SPACE = 4  # an extent of the trial inputs: kernels do not depend on sizes


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """Result of one trial of :func:`warmup`."""

    name: str
    """``repr`` of the layer, dtype and memory layout."""
    number: int
    """Number of the trial, from 1."""
    of: int
    """Number of trials."""
    functions: int
    """Number of compiled functions; 0 if all were cached on disk."""
    seconds: float
    """Duration of the trial."""


def warmup(
    model: nn.Module,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    layouts: Sequence[MemoryLayout] = ("contiguous",),
    residual: bool = False,
) -> Iterator[Compiled]:
    """Compile the CPU kernels that training a model's layers needs, before the first batch.

    A copy of each kind of layer is trained on one small batch with the compiled kernels. The model is not changed.
    Kernels are cached on disk, so later processes load them.

    Args:
        model: a model with layers of this package, or one such layer. Other layers are ignored.
        dtypes: dtypes of the inputs: float32, bfloat16 or float16.
        layouts: memory layouts of the inputs. For 1d layers ``"channels_last"`` is (N, C) and ``"contiguous"`` is (N,
            C, L).
        residual: whether layers are called with a residual.

    Returns:
        an iterator with one result per kind of layer, layout and dtype; ``list(warmup(model))`` compiles everything.

    Raises:
        ValueError: the model has no layer of this package; a dtype that the kernels do not take.
        RuntimeError: Numba cannot be used, with the reason.
    """
    kinds = {_kind(layer): layer for layer in model.modules() if isinstance(layer, BatchNormBase)}
    if not kinds:
        raise ValueError(f"warmup: the model must have layers of steadynorm, got {type(model).__name__} with none.")
    trials = [(layer, dtype, layout) for layer in kinds.values() for dtype in dtypes for layout in layouts]
    return _try_all(trials, residual)


def _try_all(trials: list[tuple[BatchNormBase, torch.dtype, MemoryLayout]], residual: bool) -> Iterator[Compiled]:
    for number, (layer, dtype, layout) in enumerate(trials, start=1):
        begin = time.perf_counter()
        with backend("numba"), count_compilations() as counted:
            _train_copy(layer, _input(layer, dtype, layout), residual)
        name = f"{layer!r} {str(dtype).removeprefix('torch.')} {layout}{' with residual' if residual else ''}"
        seconds = time.perf_counter() - begin
        yield Compiled(name=name, number=number, of=len(trials), functions=len(counted), seconds=seconds)


def _kind(layer: BatchNormBase) -> tuple[object, ...]:
    """Return a key of everything that the compiled code of a layer depends on, and slightly more."""
    parameters = tuple(name for name, tensor in layer._parameters.items() if tensor is not None)
    return type(layer), layer.activation, parameters, layer.running_mean is None, layer.update_every, layer.running


def _input(layer: BatchNormBase, dtype: torch.dtype, layout: MemoryLayout) -> Tensor:
    dimensions = next((int(name[-2]) for name in (type(layer).__name__,) if name.endswith("d")), 2)
    space = (SPACE,) * (0 if (dimensions, layout) == (1, "channels_last") else dimensions)
    shape = (2, layer.num_features, *space)
    x = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float32).view(shape).to(dtype)
    if layout == "channels_last" and dimensions > 1:
        x = x.contiguous(memory_format=torch.channels_last if dimensions == 2 else torch.channels_last_3d)
    return x.requires_grad_()


def _train_copy(layer: BatchNormBase, x: Tensor, residual: bool) -> None:
    trial = copy.deepcopy(layer).to("cpu").float().train()
    y = trial(x, x.detach().clone()) if residual else trial(x)
    y.backward(torch.ones_like(y))

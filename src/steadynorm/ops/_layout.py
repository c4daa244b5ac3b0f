"""Memory layouts of tensors, and the layout of torch's batch norm result."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

__all__ = ["format_of_result", "laid_out", "like"]


def laid_out(x: Tensor) -> Tensor:
    """Return x in the memory layout of torch's batch norm result; a copy if x has another layout.

    That is contiguous or channels-last: the one that x has or is closest to, and contiguous if x is both. A result
    with the strides of x then has the layout of torch's result.
    """
    if x.is_contiguous() and (1 not in x.shape or torch.compiler.is_compiling()):
        return x
    memory_format = format_of_result(x)
    # A dimension of size 1 may have any stride, but the stride still decides which format torch infers.
    if x.is_contiguous(memory_format=memory_format) and (
        torch.compiler.is_compiling() or x.stride() == _strides(x, memory_format)
    ):
        return x
    return x.clone(memory_format=memory_format)


def format_of_result(x: Tensor) -> torch.memory_format:
    """Return the memory format in which torch's batch norm writes its result and the gradient of x."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if x.is_contiguous() or last is None:
        return torch.contiguous_format
    if x.is_contiguous(memory_format=last):
        return last
    suggested: torch.memory_format = suggest_memory_format(x)
    return suggested


def _strides(x: Tensor, memory_format: torch.memory_format) -> tuple[int, ...]:
    return torch.empty_like(x, memory_format=memory_format, device="meta").stride()


@overload
def like(tensor: Tensor, x: Tensor) -> Tensor: ...
@overload
def like(tensor: None, x: Tensor) -> None: ...
def like(tensor: Tensor | None, x: Tensor) -> Tensor | None:
    """Return the tensor with the strides of x; a copy if its strides differ or its negation is lazy."""
    if tensor is None or (tensor.stride() == x.stride() and not tensor.is_neg()):
        return tensor
    return torch.empty_like(x).copy_(tensor)

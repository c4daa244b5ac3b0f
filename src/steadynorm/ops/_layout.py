"""How tensors lie in memory, and where torch's batch norm puts its result."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

__all__ = ["format_of_result", "laid_out", "like"]


def laid_out(x: Tensor) -> Tensor:
    """Give x as the result of torch's batch norm would lie; a copy of it where it does not.

    That is contiguous or channels-last, whichever x is or comes closest to, and contiguous where x is both. What is
    computed in the layout of x then lies as torch's does.
    """
    if x.is_contiguous() and (1 not in x.shape or torch.compiler.is_compiling()):
        return x
    memory_format = format_of_result(x)
    # The stride of a dimension of size 1 may be any, and still says which format comes next.
    if x.is_contiguous(memory_format=memory_format) and (
        torch.compiler.is_compiling() or x.stride() == _strides(x, memory_format)
    ):
        return x
    return x.clone(memory_format=memory_format)


def format_of_result(x: Tensor) -> torch.memory_format:
    """Say in which memory format torch's batch norm gives its result and the gradient of x."""
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
    """Give a tensor that lies as x does; a copy of it where it does not, or keeps its sign apart."""
    if tensor is None or (tensor.stride() == x.stride() and not tensor.is_neg()):
        return tensor
    return torch.empty_like(x).copy_(tensor)

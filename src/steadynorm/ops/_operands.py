"""Checks of the tensors that compiled code reads by address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Never

import torch
from torch import Tensor

__all__ = ["address", "address_or_0", "check_numbers", "check_operands"]


def check_operands(
    where: str,
    x: Tensor,
    unsupported_reason: str | None,
    beside: Mapping[str, Tensor | None],
    per_channel: Mapping[str, Tensor],
) -> None:
    """Raise ValueError unless the tensors match in shape, dtype and device; their strides are free.

    Args:
        where: names the kernel in the error.
        x: the input, shape (N, C, ...).
        unsupported_reason: why the kernel cannot take x, None if it can.
        beside: tensors of the shape and device of x, by name.
        per_channel: floating tensors of shape (C,) on the device of x, by name; the caller copies and converts them.
    """
    if unsupported_reason is not None:
        raise _misfit(where, "input", f"suit these kernels, but {unsupported_reason}", x)
    shape, device = x.shape, x.device
    for name, tensor in beside.items():
        if tensor is not None and (tensor.shape != shape or tensor.device != device):
            raise _misfit(where, name, f"have shape {tuple(shape)} on {device}, like the input", tensor)
    channels = shape[1:2]
    for name, tensor in per_channel.items():
        if tensor.shape != channels or tensor.device != device or not tensor.is_floating_point():
            raise _misfit(
                where, name, f"be of a floating dtype and shape {tuple(channels)} on {device}, one per channel", tensor
            )


def check_numbers(where: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor | None]) -> None:
    """Raise ValueError unless the tensors are float32, contiguous, on the CPU and of one shape.

    Kernels read and write them in place.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not (
            tensor.shape == shape
            and tensor.dtype == torch.float32
            and tensor.is_cpu
            and tensor.is_contiguous()
            and not tensor.is_neg()
        ):
            raise _misfit(where, name, f"be float32, contiguous and of shape {shape} in the CPU's memory", tensor)


def address(tensor: Tensor | None) -> int | None:
    """Return the memory address of a tensor; the caller keeps the tensor alive until the kernel returns.

    Raises:
        RuntimeError: the tensor has no memory; its storage was freed, for example.
    """
    return None if tensor is None else tensor.data_ptr() or _refuse_freed(tensor)


def address_or_0(tensor: Tensor | None) -> int:
    """Return the address as :func:`address` does, but 0 for None, so that one compiled version serves both."""
    return 0 if tensor is None else tensor.data_ptr() or _refuse_freed(tensor)


def _refuse_freed(tensor: Tensor) -> Never:
    raise RuntimeError(
        f"steadynorm.ops: a tensor must have memory, got one of shape {tuple(tensor.shape)} whose storage is freed "
        "or was never allocated. Restore it before the call."
    )


def _misfit(where: str, name: str, demand: str, tensor: Tensor) -> ValueError:
    return ValueError(
        f"steadynorm.ops.{where}: {name} must {demand}, got {tensor.dtype} {tuple(tensor.shape)} with strides "
        f'{tensor.stride()} on {tensor.device}. Pass a tensor that fits, or use backend("reference").'
    )

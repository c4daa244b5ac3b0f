"""Which implementation of the four kernels runs, and why."""

from __future__ import annotations

from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from steadynorm.ops import reference
from steadynorm.ops.reference import Activation

__all__ = ["choose_backend", "moments", "transform", "transform_grad", "transform_sums"]

Backend = Literal["numba", "reference"]
SMALL = 1 << 15
"""Values below which starting threads costs more than they save."""


def choose_backend(x: Tensor, *others: Tensor | None) -> Backend:
    """Choose the fastest implementation that takes these tensors.

    ``numba`` where x is a plain float32 or bfloat16 tensor on the CPU, dense and contiguous or channels-last, not
    small, and the others have its dtype; ``reference`` everywhere else, and wherever tensors are traced or wrapped
    (compilers, exporters, function transforms).

    Args:
        x: the input of a kernel.
        others: what else it reads of that shape: gradient, residual.
    """
    if (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, torch.nn.Parameter)
        or x.device.type != "cpu"
        or x.numel() < SMALL
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return "reference"
    from steadynorm.ops import _numba  # importing Numba takes a second, which small tensors need not pay

    return "numba" if _numba.supports(x, *others) else "reference"


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`steadynorm.ops.reference.moments`."""
    mean, var = _kernels(x).moments(x)
    return mean, var


def transform(
    x: Tensor, center: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None, activation: Activation | None
) -> Tensor:
    """See :func:`steadynorm.ops.reference.transform`."""
    y: Tensor = _kernels(x, residual).transform(x, center, scale, shift, residual, activation)
    return y


def transform_sums(
    dy: Tensor,
    x: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: Activation | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`steadynorm.ops.reference.transform_sums`."""
    kernels = _kernels(x, dy, residual)
    sum_dy, sum_dy_xc = kernels.transform_sums(dy, x, center, scale, shift, residual, activation)
    return sum_dy, sum_dy_xc


def transform_grad(
    dy: Tensor,
    x: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: Activation | None,
    a: Tensor,
    b: Tensor,
    c: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """See :func:`steadynorm.ops.reference.transform_grad`."""
    kernels = _kernels(x, dy, residual)
    dx, d_residual = kernels.transform_grad(dy, x, center, scale, shift, residual, activation, a, b, c)
    return dx, d_residual


def _kernels(x: Tensor, *others: Tensor | None) -> ModuleType:
    if choose_backend(x, *others) == "reference":
        return reference
    from steadynorm.ops import _numba

    return _numba

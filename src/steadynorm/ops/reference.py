"""The four kernels in plain tensor operations: what every faster version is held to.

A normalization reads its input twice. ``moments`` measures each channel; a rule of a few lines turns the
moments into three numbers per channel; ``transform`` applies them:

    y = activation( (x − center)·scale + shift + residual )

The backward reads twice as well. With dy′ = dy·activation′(…) the gradient behind the activation,
``transform_sums`` gives Σdy′ and Σdy′·(x − center) per channel, the rule turns them into three more numbers,
and ``transform_grad`` applies those:

    dx = a·dy′ + b·(x − center) + c        d_residual = dy′

Nothing but x and residual is needed from the forward: dy′ is computed anew. ``README.md`` derives it all.

Shape letters: N batch, C channels, S any number of spatial dimensions. Large tensors are x_NCS, dy_NCS and so
on, numbers per channel are (C,). Arithmetic is float32 (float64 for float64 input), results of shape (N, C, S)
come back in the dtype and memory format of x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from steadynorm.statistics.moments import measure, per_channel, statistics_dtype

__all__ = ["ACTIVATIONS", "Activation", "moments", "transform", "transform_grad", "transform_sums"]

Activation = Literal["relu", "leaky_relu", "silu"]
LEAKY_SLOPE = 0.01  # torch.nn.LeakyReLU's default


def moments(x_NCS: Tensor) -> tuple[Tensor, Tensor]:
    """Measure every channel: mean = Σx/count, var = Σ(x − mean)²/count, in two passes.

    Returns:
        mean, var: shape (C,), float32 (float64 for float64 input).
    """
    measured = measure(x_NCS)
    return measured.mean, measured.var


def transform(
    x_NCS: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
) -> Tensor:
    """Compute y = activation((x − center)·scale + shift + residual).

    Args:
        x_NCS: the input, any floating dtype and strides.
        center: shape (C,), subtracted first, so that digits survive where |mean| is much larger than std.
        scale: shape (C,).
        shift: shape (C,).
        residual_NCS: shape of x, or None for none.
        activation: ``relu``, ``leaky_relu`` (slope 0.01), ``silu`` or None.

    Returns:
        y, shape, dtype and memory format of x.
    """
    pre_NCS = _affine(_centred(x_NCS, center), scale, shift, residual_NCS)
    if activation is not None:
        pre_NCS = ACTIVATIONS[activation][0](pre_NCS)
    return pre_NCS.to(x_NCS.dtype)


def transform_sums(
    dy_NCS: Tensor,
    x_NCS: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
) -> tuple[Tensor, Tensor]:
    """Sum per channel what the rule's backward needs: Σdy′ and Σdy′·(x − center).

    Args:
        dy_NCS: gradient of y, shape of x. The others are those of :func:`transform`.

    Returns:
        sum_dy, sum_dy_xc: shape (C,), float32 (float64 for float64 input).
    """
    dims = [dim for dim in range(x_NCS.dim()) if dim != 1]
    xc_NCS = _centred(x_NCS, center)
    dpre_NCS = _behind_activation(dy_NCS, xc_NCS, scale, shift, residual_NCS, activation)
    return dpre_NCS.sum(dims), (dpre_NCS * xc_NCS).sum(dims)


def transform_grad(
    dy_NCS: Tensor,
    x_NCS: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
    a: Tensor,
    b: Tensor,
    c: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Compute dx = a·dy′ + b·(x − center) + c and d_residual = dy′.

    Args:
        a: shape (C,). The others are those of :func:`transform_sums`.
        b: shape (C,).
        c: shape (C,).

    Returns:
        dx in the dtype of x, and d_residual in the dtype of residual, None without one.
    """
    xc_NCS = _centred(x_NCS, center)
    dpre_NCS = _behind_activation(dy_NCS, xc_NCS, scale, shift, residual_NCS, activation)
    d_residual = None if residual_NCS is None else dpre_NCS.to(residual_NCS.dtype)
    dx_NCS = per_channel(a, x_NCS) * dpre_NCS + per_channel(b, x_NCS) * xc_NCS + per_channel(c, x_NCS)
    return dx_NCS.to(x_NCS.dtype), d_residual


def _centred(x_NCS: Tensor, center: Tensor) -> Tensor:
    return x_NCS.to(statistics_dtype(x_NCS.dtype)) - per_channel(center, x_NCS)


def _affine(xc_NCS: Tensor, scale: Tensor, shift: Tensor, residual_NCS: Tensor | None) -> Tensor:
    pre_NCS = xc_NCS * per_channel(scale, xc_NCS) + per_channel(shift, xc_NCS)
    return pre_NCS if residual_NCS is None else pre_NCS + residual_NCS


def _behind_activation(
    dy_NCS: Tensor,
    xc_NCS: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
) -> Tensor:
    """Give dy′ = dy·activation′(pre), with pre computed anew from x."""
    dy_NCS = dy_NCS.to(xc_NCS.dtype)
    if activation is None:
        return dy_NCS
    return dy_NCS * ACTIVATIONS[activation][1](_affine(xc_NCS, scale, shift, residual_NCS))


def _relu_slope(pre: Tensor) -> Tensor:
    return pre > 0


def _leaky_relu(pre: Tensor) -> Tensor:
    return torch.where(pre > 0, pre, LEAKY_SLOPE * pre)


def _leaky_relu_slope(pre: Tensor) -> Tensor:
    return torch.where(pre > 0, 1.0, LEAKY_SLOPE)


def _silu(pre: Tensor) -> Tensor:
    return pre * torch.sigmoid(pre)


def _silu_slope(pre: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(pre)
    return sigmoid * (1 + pre * (1 - sigmoid))


# name -> (activation, its derivative)
ACTIVATIONS: dict[Activation, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu": (torch.relu, _relu_slope),
    "leaky_relu": (_leaky_relu, _leaky_relu_slope),
    "silu": (_silu, _silu_slope),
}

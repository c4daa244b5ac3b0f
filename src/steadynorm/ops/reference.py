"""The four kernels in plain tensor operations: the specification of every faster version.

A normalization reads its input twice. ``moments`` measures each channel; a rule of a few lines turns the
moments into three numbers per channel; ``transform`` applies them:

    y = activation( (x − center)·scale + shift + residual )

The backward also reads twice. With dy′ = dy·activation′(…) the gradient before the activation,
``transform_sums`` gives Σdy′ and Σdy′·(x − center) per channel, the rule turns them into three more numbers,
and ``transform_grad`` applies those:

    dx = a·dy′ + b·(x − center) + c        d_residual = dy′

Nothing but x and residual is needed from the forward: dy′ is computed again. ``README.md`` derives it all.

Shape letters: N batch, C channels, S any number of spatial dimensions. Large tensors are x_NCS, dy_NCS and so
on, numbers per channel are (C,). Arithmetic is float32 (float64 for float64 input), results of shape (N, C, S)
come back in the dtype and memory format of x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from steadynorm.statistics.moments import centred, channel_sum, measure, per_channel

__all__ = ["ACTIVATIONS", "LEAKY_SLOPE", "Activation", "moments", "transform", "transform_grad", "transform_sums"]

Activation = Literal["relu", "leaky_relu", "silu"]
"""Activation that a layer can fuse; leaky_relu has slope 0.01."""
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
    y_NCS = _shifted_(centred(x_NCS, center).mul_(per_channel(scale, x_NCS)), shift, residual_NCS)
    if activation is not None:
        y_NCS = ACTIVATIONS[activation].apply_(y_NCS)
    return y_NCS.to(x_NCS.dtype)


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
    xc_NCS = centred(x_NCS, center)
    dpre_NCS = _activation_backward(dy_NCS, xc_NCS, scale, shift, residual_NCS, activation)
    return channel_sum(dpre_NCS), channel_sum(xc_NCS.mul_(dpre_NCS))


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
    dx_NCS = centred(x_NCS, center)
    dpre_NCS = _activation_backward(dy_NCS, dx_NCS, scale, shift, residual_NCS, activation)
    d_residual = None if residual_NCS is None else torch.empty_like(x_NCS, dtype=residual_NCS.dtype).copy_(dpre_NCS)
    dx_NCS.mul_(per_channel(b, x_NCS)).add_(dpre_NCS.mul_(per_channel(a, x_NCS))).add_(per_channel(c, x_NCS))
    return dx_NCS.to(x_NCS.dtype), d_residual


def _shifted_(scaled_NCS: Tensor, shift: Tensor, residual_NCS: Tensor | None) -> Tensor:
    """Add shift and residual in place."""
    scaled_NCS.add_(per_channel(shift, scaled_NCS))
    return scaled_NCS if residual_NCS is None else scaled_NCS.add_(residual_NCS)


def _activation_backward(
    dy_NCS: Tensor,
    xc_NCS: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
) -> Tensor:
    """Compute dy′ = dy·activation′(pre) as a new tensor, with pre recomputed from x."""
    if activation is None:
        return dy_NCS.to(xc_NCS.dtype, copy=True)
    pre_NCS = _shifted_(xc_NCS * per_channel(scale, xc_NCS), shift, residual_NCS)
    return ACTIVATIONS[activation].backward(dy_NCS.to(xc_NCS.dtype), pre_NCS)


class ActivationFunction(NamedTuple):
    """An activation and its derivative."""

    apply: Callable[[Tensor], Tensor]
    apply_: Callable[[Tensor], Tensor]
    """In place."""
    backward: Callable[[Tensor, Tensor], Tensor]
    """From dy and pre, dy·activation′(pre)."""
    from_result: bool
    """Whether the derivative follows from the result, so that autograd lets it run in place."""


# The derivatives are torch's own one-pass operations: a product with the boolean mask pre > 0 takes four times as long.
ACTIVATIONS: dict[Activation, ActivationFunction] = {
    "relu": ActivationFunction(
        apply=F.relu,
        apply_=torch.relu_,
        backward=lambda dy, pre: torch.ops.aten.threshold_backward(dy, pre, 0),
        from_result=True,
    ),
    "leaky_relu": ActivationFunction(
        apply=lambda pre: F.leaky_relu(pre, LEAKY_SLOPE),
        apply_=lambda pre: F.leaky_relu(pre, LEAKY_SLOPE, inplace=True),
        backward=lambda dy, pre: torch.ops.aten.leaky_relu_backward(dy, pre, LEAKY_SLOPE, False),
        from_result=True,
    ),
    "silu": ActivationFunction(  # dy·σ·(1 + pre·(1 − σ)) with σ = sigmoid(pre)
        apply=F.silu,
        apply_=lambda pre: F.silu(pre, inplace=True),
        backward=lambda dy, pre: torch.ops.aten.silu_backward(dy, pre),
        from_result=False,
    ),
}

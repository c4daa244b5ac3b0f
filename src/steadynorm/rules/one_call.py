"""Plain batch norm in one compiled call each way, instead of moments, rule, running estimates and transform in turn.

For tensors that are not large those calls, each a tensor operation or several, take longer than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from steadynorm.ops.dispatch import unobserved
from steadynorm.ops.reference import Activation
from steadynorm.rules.batch_norm import BatchNormRule
from steadynorm.rules.normalize import differentiable_backward

__all__ = ["batch_norm_in_one_call", "takes_one_call"]


def takes_one_call(x: Tensor, *per_channel: Tensor | None) -> bool:
    """Whether the compiled call takes float32 tensors as given per channel: plain ones, in the memory of the CPU."""
    for tensor in per_channel:
        if tensor is not None and not (
            tensor.is_cpu and tensor.is_contiguous() and type(tensor) in (Tensor, torch.nn.Parameter)
        ):
            return False
    return unobserved(x)


def batch_norm_in_one_call(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    residual: Tensor | None,
    activation: Activation | None,
) -> Tensor:
    """Train as ``normalize`` with ``BatchNormRule`` does, and let the running estimates follow.

    Args:
        x: what :func:`steadynorm.ops._numba.batch_norm` takes; the others likewise.
        running_mean: changed in place.
        running_var: changed in place, by the unbiased variance.

    Returns:
        y in the shape, dtype and memory format of x, differentiable twice.
    """
    y = _apply(x, residual, BatchNormRule(eps), activation, weight, bias, running_mean, running_var, momentum)
    if running_mean is not None and running_var is not None:
        increment_version((running_mean, running_var))
    return y


class _BatchNorm(torch.autograd.Function):
    """Saves what ``normalize`` does."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch gives no type that has these attributes)
        x: Tensor,
        residual: Tensor | None,
        rule: BatchNormRule,
        activation: Activation | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
    ) -> Tensor:
        from steadynorm.ops import _numba

        y, moments = _numba.batch_norm(
            x, residual, activation, weight, bias, rule.eps, running_mean, running_var, momentum
        )
        ctx.rule, ctx.activation, ctx.with_residual = rule, activation, residual is not None
        # Without an activation the residual's gradient is dy, and nothing else depends on it.
        ctx.save_for_backward(x, None if activation is None else residual, weight, bias, moments)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (as above)
        from steadynorm.ops import _numba

        x, residual, weight, bias, moments = ctx.saved_tensors
        if torch.is_grad_enabled():
            dx, d_residual, d_weight, d_bias = differentiable_backward(ctx, dy, x, residual, weight, bias)
            return dx, d_residual, None, None, d_weight, d_bias, None, None, None
        dx, d_residual, d_weight, d_bias = _numba.batch_norm_grad(
            dy, x, residual, ctx.activation, weight, bias, ctx.rule.eps, moments
        )
        if d_residual is None and ctx.with_residual:
            d_residual = dy
        return dx, d_residual, None, None, d_weight, d_bias, None, None, None


# What torch spends on binding signatures is for function transforms, which are none of this function's business.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _BatchNorm).apply

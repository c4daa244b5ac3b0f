"""A rule fused with its kernels: one compiled call each way instead of moments, rule, running update and transform.

For tensors that are not large, those calls of one or several tensor operations take longer than the arithmetic. The
same call reads and writes the chunks of ghost batch norm in place, without splitting or concatenation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from steadynorm.ops._layout import laid_out
from steadynorm.ops.dispatch import compiled_kernels
from steadynorm.ops.observers import is_transformed
from steadynorm.ops.reference import Activation
from steadynorm.rules.normalize import differentiable_backward
from steadynorm.rules.overflow import instead_of_overflow
from steadynorm.rules.rule import FusedRule
from steadynorm.statistics import Moments

__all__ = ["normalize_fused"]


def normalize_fused(
    x: Tensor,
    rule: FusedRule,
    weight: Tensor | None,
    bias: Tensor | None,
    *own: Tensor | None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    momentum: float = 0.0,
    noise: Tensor | None = None,
    noise_momentum: float = 0.0,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    chunks: int = 1,
) -> tuple[Tensor, Moments]:
    """Train as ``normalize`` does, and update the running statistics.

    Args:
        x: the input of :func:`steadynorm.ops._numba.normalize`.
        rule: turns the moments into center, scale and shift.
        weight: float32, shape (C,); None counts as 1.
        bias: float32, shape (C,); None counts as 0.
        own: the parameters of the rule after weight, bias and the running statistics.
        running_mean: shape (C,), read by some rules, then updated in place; None for none.
        running_var: as running_mean; updated with the unbiased variance.
        momentum: weight of this batch in the running statistics; 0 leaves them unchanged.
        noise: noise of one sample, float32, one value, updated in place; None for none.
        noise_momentum: weight of this batch in the noise.
        residual: shape of x; added before the activation.
        activation: ``relu``, ``leaky_relu``, ``silu`` or None.
        chunks: parts of the batch, as :func:`torch.tensor_split` makes them, each normalized by its own moments.

    Returns:
        y in the shape and dtype of x and the memory format of torch's batch norm, differentiable twice; and the moments
        of the batch, without gradient.
    """
    channels = x.shape[1]
    call = _Call(rule, rule.compiled(*own), activation, chunks, momentum, noise, noise_momentum)
    rows = 2 + (2 if rule.reads_running else 0) + (2 * chunks if chunks > 1 else 0)
    saved = torch.empty((rows, channels), dtype=torch.float32)
    y = _apply(x, residual, call, saved, running_mean, running_var, weight, bias, *own)
    if not saved[1].max().item() < math.inf:
        parameters = (weight, bias, *_running_seen(rule, saved), *own)
        overflowed = ~saved[1].isfinite()
        y = instead_of_overflow(
            y, x, overflowed, rule, *parameters, residual=residual, activation=activation, chunks=chunks
        )
    if momentum and running_mean is not None and running_var is not None:
        increment_version((running_mean, running_var))
    if noise is not None:
        increment_version(noise)
    return y, Moments(mean=saved[0], var=saved[1], count=x.numel() // channels)


class _Call(NamedTuple):
    """Arguments that are not part of the graph."""

    rule: FusedRule
    compiled_rule: Any
    activation: Activation | None
    chunks: int
    momentum: float
    noise: Tensor | None
    noise_momentum: float


FIRST_PARAMETER = 6
"""Position of the rule's parameters among the arguments of ``_Fused``."""


class _Fused(torch.autograd.Function):
    """Normalize in one compiled call; saves the moments of every chunk."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch gives no type that has these attributes)
        x: Tensor,
        residual: Tensor | None,
        call: _Call,
        saved: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        weight, bias, *_ = parameters
        y: Tensor = compiled_kernels("numba").normalize(
            laid_out(x),
            residual,
            call.activation,
            call.compiled_rule,
            call.chunks,
            weight,
            bias,
            running_mean,
            running_var,
            call.momentum,
            call.noise,
            call.noise_momentum,
            saved,
        )
        ctx.rule, ctx.compiled_rule, ctx.activation, ctx.chunks, *_ = call
        ctx.with_residual = residual is not None
        # Without an activation the residual's gradient is dy, and nothing else depends on it.
        ctx.save_for_backward(x, None if ctx.activation is None else residual, saved, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (as above)
        x, residual, saved, weight, bias, *own = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(dy):
            dx, d_residual, d_weight, d_bias, *d_own = _differentiable(ctx, dy, x, residual, saved, weight, bias, own)
            return dx, d_residual, None, None, None, None, d_weight, d_bias, *d_own
        learned = own[-1] if ctx.rule.learns else None
        dx, d_residual, d_weight, d_bias, d_learned = compiled_kernels("numba").normalize_grad(
            dy, laid_out(x), residual, ctx.activation, ctx.compiled_rule, ctx.chunks, weight, bias, saved, learned
        )
        if d_residual is None and ctx.with_residual:
            d_residual = dy
        without = [None] * (len(own) - 1)
        return dx, d_residual, None, None, None, None, d_weight, d_bias, *without, *([d_learned] if own else ())


# Skips torch's binding of signatures, which only function transforms need; this function never runs in one.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _Fused).apply


def _differentiable(
    ctx: Any,  # noqa: ANN401 (as above)
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    saved: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    own: list[Tensor | None],
) -> list[Tensor | None]:
    """Differentiate every chunk differentiably; concatenate gradients of tensors, add those of parameters.

    Returns:
        the gradients of x, residual, weight and bias, and of the rule's own parameters.
    """
    stored = _running_seen(ctx.rule, saved)
    parameters = (weight, bias, *stored, *own)
    at = ctx.needs_input_grad
    needed = (*at[:2], *at[FIRST_PARAMETER : FIRST_PARAMETER + 2], *[False] * len(stored), *at[FIRST_PARAMETER + 2 :])
    parts = [
        differentiable_backward(ctx, needed, *part, *parameters)
        for part in zip(*(_split(tensor, ctx.chunks) for tensor in (dy, x, residual)), strict=True)
    ]
    gradients = [
        None if each[0] is None else each[0] if len(each) == 1 else torch.cat(each) if at < 2 else sum(each)
        for at, each in enumerate(zip(*parts, strict=True))
    ]
    return [*gradients[:4], *gradients[4 + len(stored) :]]


def _running_seen(rule: FusedRule, saved: Tensor) -> tuple[Tensor, ...]:
    """Return the running statistics as the rule read them."""
    return (saved[2], saved[3]) if rule.reads_running else ()


def _split(tensor: Tensor | None, chunks: int) -> tuple[Tensor | None, ...]:
    return (None,) * chunks if tensor is None else tensor.tensor_split(chunks)

"""A rule in one compiled call each way, instead of moments, rule, running estimates and transform in turn.

For tensors that are not large those calls, each a tensor operation or several, take longer than the arithmetic. The
chunks of ghost batch norm are read and written where they lie, in the same call; nothing is cut or joined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from steadynorm.ops._layout import laid_out
from steadynorm.ops.dispatch import unobserved
from steadynorm.ops.reference import Activation
from steadynorm.rules.batch_norm import BatchNormRule
from steadynorm.rules.batch_renorm import BatchRenormRule
from steadynorm.rules.formulas import is_transformed
from steadynorm.rules.gated_batch_norm import GatedBatchNormRule
from steadynorm.rules.normalize import differentiable_backward
from steadynorm.rules.overflow import instead_of_overflow
from steadynorm.statistics import Moments

__all__ = ["normalize_in_one_call", "takes_one_call"]

OneCallRule = BatchNormRule | BatchRenormRule | GatedBatchNormRule


def takes_one_call(x: Tensor, *per_channel: Tensor | None) -> bool:
    """Whether the compiled call takes float32 tensors as given per channel: plain ones, in the memory of the CPU."""
    for tensor in per_channel:
        if tensor is not None and not (
            tensor.is_cpu and tensor.is_contiguous() and type(tensor) in (Tensor, torch.nn.Parameter)
        ):
            return False
    return unobserved(x)


def normalize_in_one_call(
    x: Tensor,
    rule: OneCallRule,
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
    """Train as ``normalize`` does, and let the running estimates follow.

    Args:
        x: what :func:`steadynorm.ops._numba.normalize` takes.
        rule: as for ``normalize``.
        weight: likewise, float32.
        bias: likewise.
        own: the parameters of the rule behind weight, bias and the stored moments.
        running_mean: the stored moments of a rule that looks at such; then, changed in place, they follow the batch.
            None where there are none.
        running_var: likewise, by the unbiased variance.
        momentum: weight of this batch in them; 0 leaves them as they are.
        noise: of one sample, float32, one value, which follows in place; None where it is not to.
        noise_momentum: weight of this batch in it.
        residual: as for ``normalize``.
        activation: likewise.
        chunks: parts that are normalized each by itself, of sizes as :func:`torch.tensor_split` makes them.

    Returns:
        y in the shape and dtype of x and the memory format of torch's batch norm, differentiable twice; and the moments
        of the batch, without gradient.
    """
    from steadynorm.ops._numba_rules import kept_rows

    channels = x.shape[1]
    call = _Call(rule, _compiled(rule, own), activation, chunks, momentum, noise, noise_momentum)
    kept = torch.empty((kept_rows(call.compiled_rule, chunks), channels), dtype=torch.float32)
    y = _apply(x, residual, call, kept, running_mean, running_var, weight, bias, *own)
    if not kept[1].max().item() < math.inf:
        parameters = (weight, bias, *_stored(rule, kept), *own)
        overflowed = ~kept[1].isfinite()
        y = instead_of_overflow(
            y, x, overflowed, rule, *parameters, residual=residual, activation=activation, chunks=chunks
        )
    if momentum and running_mean is not None and running_var is not None:
        increment_version((running_mean, running_var))
    if noise is not None:
        increment_version(noise)
    return y, Moments(mean=kept[0], var=kept[1], count=x.numel() // channels)


class _Call(NamedTuple):
    """What is no part of the graph."""

    rule: OneCallRule
    compiled_rule: Any
    activation: Activation | None
    chunks: int
    momentum: float
    noise: Tensor | None
    noise_momentum: float


FIRST_PARAMETER = 6
"""Position of the rule's parameters among the arguments of ``_OneCall``."""


class _OneCall(torch.autograd.Function):
    """Saves what ``normalize`` does, with the moments of every chunk."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch gives no type that has these attributes)
        x: Tensor,
        residual: Tensor | None,
        call: _Call,
        kept: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *parameters: Tensor | None,
    ) -> Tensor:
        from steadynorm.ops import _numba

        weight, bias, *_ = parameters
        y = _numba.normalize(
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
            kept,
        )
        ctx.rule, ctx.compiled_rule, ctx.activation, ctx.chunks, *_ = call
        ctx.with_residual = residual is not None
        # Without an activation the residual's gradient is dy, and nothing else depends on it.
        ctx.save_for_backward(x, None if ctx.activation is None else residual, kept, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (as above)
        from steadynorm.ops import _numba

        x, residual, kept, weight, bias, *own = ctx.saved_tensors
        if torch.is_grad_enabled() or is_transformed(dy):
            dx, d_residual, d_weight, d_bias, *d_own = _differentiable(ctx, dy, x, residual, kept, weight, bias, own)
            return dx, d_residual, None, None, None, None, d_weight, d_bias, *d_own
        learnt = own[-1] if isinstance(ctx.rule, GatedBatchNormRule) and ctx.rule.fixed_gate is None else None
        dx, d_residual, d_weight, d_bias, d_learnt = _numba.normalize_grad(
            dy, laid_out(x), residual, ctx.activation, ctx.compiled_rule, ctx.chunks, weight, bias, kept, learnt
        )
        if d_residual is None and ctx.with_residual:
            d_residual = dy
        without = [None] * (len(own) - 1)
        return dx, d_residual, None, None, None, None, d_weight, d_bias, *without, *([d_learnt] if own else ())


# What torch spends on binding signatures is for function transforms, which are none of this function's business.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _OneCall).apply


def _compiled(rule: OneCallRule, own: tuple[Tensor | None, ...]) -> Any:  # noqa: ANN401 (one of the compiled rules)
    """Give the rule as the kernels know it."""
    from steadynorm.ops import _numba_rules as compiled

    eps = float(rule.eps)
    if isinstance(rule, BatchNormRule):
        return compiled.BatchNorm(eps)
    if isinstance(rule, BatchRenormRule):
        return compiled.Renorm(eps, *(float(bound) for bound in own if bound is not None))
    if rule.fixed_gate is not None:
        return compiled.Blend(eps, float(rule.fixed_gate))
    noise, confidence = own
    assert noise is not None
    return compiled.Gated(eps, float(noise), *((0.0, 0.0, 0.0) if confidence is None else confidence.tolist()))


def _differentiable(
    ctx: Any,  # noqa: ANN401 (as above)
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    kept: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    own: list[Tensor | None],
) -> list[Tensor | None]:
    """Differentiate every chunk so that it can be differentiated again; join those of tensors, add those of numbers.

    Returns:
        the gradients of x, residual, weight and bias, and of the rule's own parameters.
    """
    stored = _stored(ctx.rule, kept)
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


def _stored(rule: OneCallRule, kept: Tensor) -> tuple[Tensor, ...]:
    """Give the stored moments that the rule looked at."""
    return () if isinstance(rule, BatchNormRule) else (kept[2], kept[3])


def _split(tensor: Tensor | None, chunks: int) -> tuple[Tensor | None, ...]:
    return (None,) * chunks if tensor is None else tensor.tensor_split(chunks)

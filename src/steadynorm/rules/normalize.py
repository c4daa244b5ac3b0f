"""The one autograd function: moments, a rule and the transform, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steadynorm.ops import reference
from steadynorm.ops.dispatch import kernels_for
from steadynorm.ops.reference import Activation
from steadynorm.rules.rule import Affine, Rule
from steadynorm.statistics import Moments
from steadynorm.statistics.moments import channel_sum, statistics_dtype
from steadynorm.statistics.ranks import Ranks, merge_over, pool_over, sum_over

__all__ = ["differentiable_backward", "normalize"]


def normalize(
    x: Tensor,
    rule: Rule,
    *parameters: Tensor | None,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    stored: Moments | None = None,
    ranks: Ranks | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize a batch by a rule applied to its own moments.

        y = activation( (x − center)·scale + shift + residual ),   (center, scale, shift) = rule(moments(x))

    Args:
        x: shape (N, C, ...), with at least one value per channel, on some rank where there are several.
        rule: what turns the moments into center, scale and shift.
        parameters: the rule's parameters, each of shape (C,) or None.
        residual: shape of x; added before the activation.
        activation: ``relu``, ``leaky_relu``, ``silu`` or None.
        stored: moments to apply the rule to in place of the batch's own, which are not measured then.
        ranks: whose batches are one batch, with one collective forward and one backward. Gradients with respect to
            x are those of the sum of all ranks' losses, those with respect to parameters of this rank's x, as
            torch.nn.SyncBatchNorm and DistributedDataParallel have it.

    Returns:
        y in the shape, dtype and memory format of x, differentiable twice with respect to x, residual and
        parameters; and the moments that the rule was applied to, without gradient.
    """
    if residual is x:  # Dynamo traces no function that is given one tensor twice
        residual = x.view_as(x)
    if stored is not None:
        y, *_ = _apply()(x, residual, rule, activation, None, stored.mean, stored.var, *parameters)
        return y, stored
    y, mean, var, *count = _apply()(x, residual, rule, activation, ranks, None, None, *parameters)
    return y, Moments(mean=mean, var=var, count=count[0] if count else _count(x))


def _apply() -> Callable[..., tuple[Tensor, ...]]:
    """Give ``_Normalize.apply``; where no transform needs it, without the 50 µs that torch spends on signatures."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        whole: Callable[..., tuple[Tensor, ...]] = _Normalize.apply
        return whole
    bare: Callable[..., tuple[Tensor, ...]] = super(torch.autograd.Function, _Normalize).apply
    return bare


def _count(x: Tensor) -> int:
    return x.numel() // x.shape[1]


FIRST_PARAMETER = 7
"""Position of the rule's parameters among the arguments of ``_Normalize``."""


class _Normalize(torch.autograd.Function):
    """Saves x, residual and tensors of shape (C,) only; what the activation needs is computed anew."""

    @staticmethod
    def forward(
        x: Tensor,
        residual: Tensor | None,
        rule: Rule,
        activation: Activation | None,
        ranks: Ranks | None,
        stored_mean: Tensor | None,
        stored_var: Tensor | None,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, ...]:
        kernels = kernels_for(x, residual)
        if stored_mean is None or stored_var is None:
            mean, var = kernels.moments(x)
        else:
            mean, var = stored_mean.clone(), stored_var.clone()  # they may change before the backward
        moments = Moments(mean=mean, var=var, count=_count(x))
        if ranks is not None:
            moments = merge_over(ranks, moments)
        affine = rule.forward(moments, *parameters)
        y = kernels.transform(x, affine.center, affine.scale, affine.shift, residual, activation)
        count = (moments.count,) if isinstance(moments.count, Tensor) else ()
        return y, moments.mean, moments.var, *count

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401 (torch gives no type that has these attributes)
        x, residual, ctx.rule, ctx.activation, ctx.ranks, stored, _, *parameters = inputs
        _, mean, var, *count = output
        ctx.stored = stored is not None
        ctx.mark_non_differentiable(mean, var, *count)
        ctx.with_residual = residual is not None
        # Without an activation the residual's gradient is dy, and nothing else depends on it.
        kept = None if ctx.activation is None else residual
        ctx.save_for_backward(x, kept, mean, var, count[0] if count else None, *parameters)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (as above)
        x, residual, mean, var, count, *parameters = ctx.saved_tensors
        moments = Moments(mean=mean, var=var, count=_count(x) if count is None else count)
        if torch.is_grad_enabled():
            given = moments if ctx.stored else None
            dx, d_residual, *d_parameters = differentiable_backward(
                ctx, dy, x, residual, *parameters, stored=given, ranks=ctx.ranks
            )
            return dx, d_residual, None, None, None, None, None, *d_parameters
        affine = ctx.rule.forward(moments, *parameters)
        kernels = kernels_for(x, dy, residual)
        d_parameters = [None] * len(parameters)
        if not ctx.stored or any(ctx.needs_input_grad[FIRST_PARAMETER:]):
            sum_dy, sum_dy_xc = kernels.transform_sums(
                dy, x, affine.center, affine.scale, affine.shift, residual, ctx.activation
            )
            gradient = Affine(-affine.scale * sum_dy, sum_dy_xc, sum_dy)
            d_mean, d_var, d_parameters = ctx.rule.backward(gradient, moments, *parameters)
        if ctx.stored:  # no value of x moves them
            d_mean = d_var = torch.zeros_like(mean)
        if ctx.ranks is not None and ctx.needs_input_grad[0]:
            d_mean, d_var = sum_over(ctx.ranks, d_mean, d_var)
        b = d_var * (2 / moments.count)
        c = d_mean / moments.count
        if affine.center is not mean:
            c = c + b * (affine.center - mean)
        dx, d_residual = kernels.transform_grad(
            dy, x, affine.center, affine.scale, affine.shift, residual, ctx.activation, affine.scale, b, c
        )
        d_residual = dy if d_residual is None and ctx.with_residual else d_residual
        return dx, d_residual, None, None, None, None, None, *d_parameters

    @staticmethod
    def vmap(*_: object) -> tuple[Tensor, tuple[int | None, ...]]:
        """Refuse: the examples of a batch are what a layer in training normalizes by."""
        raise RuntimeError(
            "normalize: training on batch statistics cannot be mapped over examples by torch.func.vmap, got a mapped "
            "input. Call .eval(), or let the mapped dimension be part of the batch."
        )


def differentiable_backward(
    ctx: Any,  # noqa: ANN401 (as above)
    dy: Tensor,
    *saved: Tensor | None,
    stored: Moments | None = None,
    ranks: Ranks | None = None,
) -> tuple[Tensor | None, ...]:
    """Let autograd differentiate the forward formulas, which leaves a graph to differentiate again.

    Returns:
        the gradients of what was saved: of x, of the residual, of each parameter.
    """
    # One input may come from another, as in a residual block. Nothing leads from view to view, so that each
    # gradient is of this layer alone.
    inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in saved]
    x, residual, *parameters = inputs
    assert x is not None
    affine = ctx.rule.forward(_moments_with_graph(x, ranks) if stored is None else stored, *parameters)
    y = reference.transform(x, affine.center, affine.scale, affine.shift, residual, ctx.activation)
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    dx, d_residual, *d_parameters = (
        next(gradients) if tensor is not None and tensor.requires_grad else None for tensor in inputs
    )
    return dx, dy if d_residual is None and ctx.with_residual else d_residual, *d_parameters


def _moments_with_graph(x: Tensor, ranks: Ranks | None) -> Moments:
    if x.numel() == 0:  # zeros that come from x: its rank takes part in the backward
        mean = var = channel_sum(x.to(statistics_dtype(x.dtype)))
    else:
        mean, var = reference.moments(x)
    moments = Moments(mean=mean, var=var, count=_count(x))
    return moments if ranks is None else pool_over(ranks, moments)

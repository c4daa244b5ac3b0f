"""The one autograd function: moments, a rule and the transform, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steadynorm.ops._layout import laid_out
from steadynorm.ops.observers import is_recorded, is_transformed
from steadynorm.ops.reference import Activation
from steadynorm.ops.registration import kernels_for
from steadynorm.rules.formulas import normalize_by_formulas
from steadynorm.rules.overflow import instead_of_overflow, is_looked_at
from steadynorm.rules.rule import CenterScaleShift, Rule
from steadynorm.statistics import Moments
from steadynorm.statistics.moments import count_of
from steadynorm.statistics.ranks import Ranks, merge_over, sum_over

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
        rule: turns the moments into center, scale and shift.
        parameters: the rule's parameters, each of shape (C,) or None.
        residual: shape of x; added before the activation.
        activation: ``relu``, ``leaky_relu``, ``silu`` or None.
        stored: moments for the rule in place of the batch's own, which are then not measured.
        ranks: the ranks whose batches count as one, with one collective forward and one backward. Gradients of x are
            those of the sum of all ranks' losses; gradients of parameters come from this rank's x alone, as in
            torch.nn.SyncBatchNorm and DistributedDataParallel.

    Returns:
        y in the shape and dtype of x and the memory format of torch's batch norm, differentiable twice with respect to
        x, residual and parameters; and the moments that the rule was applied to, without gradient.
    """
    recorded = is_recorded() and ranks is None
    if is_transformed() or recorded:
        values = laid_out(x) if recorded and not is_transformed() else x
        y, moments = normalize_by_formulas(
            values, rule, *parameters, residual=residual, activation=activation, stored=stored, ranks=ranks
        )
        return y, Moments(mean=moments.mean.detach(), var=moments.var.detach(), count=moments.count)
    if residual is x:  # Dynamo cannot trace a function that gets one tensor twice
        residual = x.view_as(x)
    if stored is not None:
        y, *_ = _apply(x, residual, rule, activation, None, stored.mean, stored.var, *parameters)
        return y, stored
    y, mean, var, *count = _apply(x, residual, rule, activation, ranks, None, None, *parameters)
    if ranks is None and is_looked_at(x) and not var.max().item() < math.inf:
        y = instead_of_overflow(y, x, ~var.isfinite(), rule, *parameters, residual=residual, activation=activation)
    return y, Moments(mean=mean, var=var, count=count[0] if count else count_of(x))


def _apply(*arguments: Any) -> tuple[Tensor, ...]:  # noqa: ANN401 (as ``_Normalize`` has them)
    """Call ``_Normalize.apply``; where no compiler needs it, without the 50 µs that torch spends on signatures."""
    run: Callable[..., tuple[Tensor, ...]]
    if not torch.compiler.is_compiling():
        run = super(torch.autograd.Function, _Normalize).apply
    elif torch.compiler.is_dynamo_compiling() and not _wants_gradient(arguments):
        run = _Normalize.forward  # through apply, Dynamo would pass it a context, which it refuses (torch 2.6 to 2.14)
    else:
        run = _Normalize.apply
    return run(*arguments)


def _wants_gradient(arguments: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in arguments)


FIRST_PARAMETER = 7
"""Position of the rule's parameters among the arguments of ``_Normalize``."""


class _Normalize(torch.autograd.Function):
    """Normalize by kernels; saves x, residual and tensors of shape (C,), and recomputes the rest in the backward."""

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
        x = laid_out(x)
        kernels = kernels_for(x, residual)
        if stored_mean is None or stored_var is None:
            mean, var = kernels.moments(x)
        else:
            mean, var = stored_mean.clone(), stored_var.clone()  # they may change before the backward
        moments = Moments(mean=mean, var=var, count=count_of(x))
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
        moments = Moments(mean=mean, var=var, count=count_of(x) if count is None else count)
        if torch.is_grad_enabled() or is_transformed(dy):
            needed = (*ctx.needs_input_grad[:2], *ctx.needs_input_grad[FIRST_PARAMETER:])
            given = moments if ctx.stored else None
            dx, d_residual, *d_parameters = differentiable_backward(
                ctx, needed, dy, x, residual, *parameters, stored=given, ranks=ctx.ranks
            )
            return dx, d_residual, None, None, None, None, None, *d_parameters
        affine, x = ctx.rule.forward(moments, *parameters), laid_out(x)
        kernels = kernels_for(x, dy, residual)
        d_parameters = [None] * len(parameters)
        if not ctx.stored or any(ctx.needs_input_grad[FIRST_PARAMETER:]):
            sum_dy, sum_dy_xc = kernels.transform_sums(
                dy, x, affine.center, affine.scale, affine.shift, residual, ctx.activation
            )
            gradient = CenterScaleShift(-affine.scale * sum_dy, sum_dy_xc, sum_dy)
            d_mean, d_var, d_parameters = ctx.rule.backward(gradient, moments, *parameters)
        if ctx.stored:  # they do not depend on x
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


def differentiable_backward(
    ctx: Any,  # noqa: ANN401 (as above)
    needed: tuple[bool, ...],
    dy: Tensor,
    *saved: Tensor | None,
    stored: Moments | None = None,
    ranks: Ranks | None = None,
) -> tuple[Tensor | None, ...]:
    """Differentiate the forward formulas by autograd, so that transforms can map them and differentiate again.

    Args:
        needed: for each saved tensor, whether its gradient is needed. ``requires_grad`` of a saved tensor does not
            tell: inside a transform it may be False.

    Returns:
        the gradients of x, residual and each parameter; None if not needed.
    """
    with torch.enable_grad():
        # One input may depend on another, as in a residual block. Views of each cut that link, so that the gradients
        # are of this layer alone.
        inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in saved]
        x, residual, *parameters = inputs
        assert x is not None
        y, _ = normalize_by_formulas(
            x, ctx.rule, *parameters, residual=residual, activation=ctx.activation, stored=stored, ranks=ranks
        )
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if tensor is not None and need]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=torch.is_grad_enabled()) if wanted else ())
    dx, d_residual, *d_parameters = (
        next(gradients) if tensor is not None and need else None for tensor, need in zip(inputs, needed, strict=True)
    )
    return dx, dy if d_residual is None and ctx.with_residual else d_residual, *d_parameters

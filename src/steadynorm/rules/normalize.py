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

__all__ = ["differentiable_backward", "normalize"]


def normalize(
    x: Tensor,
    rule: Rule,
    *parameters: Tensor | None,
    residual: Tensor | None = None,
    activation: Activation | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize a batch by a rule applied to its own moments.

        y = activation( (x − center)·scale + shift + residual ),   (center, scale, shift) = rule(moments(x))

    Args:
        x: shape (N, C, ...), with at least one value per channel.
        rule: what turns the moments into center, scale and shift.
        parameters: the rule's parameters, each of shape (C,) or None.
        residual: shape of x; added before the activation.
        activation: ``relu``, ``leaky_relu``, ``silu`` or None.

    Returns:
        y in the shape, dtype and memory format of x, differentiable twice with respect to x, residual and
        parameters; and the moments of x, without gradient.
    """
    if residual is x:  # Dynamo traces no function that is given one tensor twice
        residual = x.view_as(x)
    y, mean, var = _apply()(x, residual, rule, activation, *parameters)
    return y, Moments(mean=mean, var=var, count=_count(x))


def _apply() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Give ``_Normalize.apply``; where no transform needs it, without the 50 µs that torch spends on signatures."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        whole: Callable[..., tuple[Tensor, Tensor, Tensor]] = _Normalize.apply
        return whole
    bare: Callable[..., tuple[Tensor, Tensor, Tensor]] = super(torch.autograd.Function, _Normalize).apply
    return bare


def _count(x: Tensor) -> int:
    return x.numel() // x.shape[1]


class _Normalize(torch.autograd.Function):
    """Saves x, residual and tensors of shape (C,) only; what the activation needs is computed anew."""

    @staticmethod
    def forward(
        x: Tensor,
        residual: Tensor | None,
        rule: Rule,
        activation: Activation | None,
        *parameters: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kernels = kernels_for(x, residual)
        mean, var = kernels.moments(x)
        affine = rule.forward(Moments(mean=mean, var=var, count=_count(x)), *parameters)
        return kernels.transform(x, affine.center, affine.scale, affine.shift, residual, activation), mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:  # noqa: ANN401 (torch gives no type that has these attributes)
        x, residual, ctx.rule, ctx.activation, *parameters = inputs
        _, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        ctx.with_residual = residual is not None
        # Without an activation the residual's gradient is dy, and nothing else depends on it.
        ctx.save_for_backward(x, None if ctx.activation is None else residual, mean, var, *parameters)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (as above)
        x, residual, mean, var, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable_backward(ctx, dy, x, residual, *parameters)
        moments = Moments(mean=mean, var=var, count=_count(x))
        affine = ctx.rule.forward(moments, *parameters)
        kernels = kernels_for(x, dy, residual)
        sum_dy, sum_dy_xc = kernels.transform_sums(
            dy, x, affine.center, affine.scale, affine.shift, residual, ctx.activation
        )
        gradient = Affine(-affine.scale * sum_dy, sum_dy_xc, sum_dy)
        d_mean, d_var, d_parameters = ctx.rule.backward(gradient, moments, *parameters)
        b = d_var * (2 / moments.count)
        c = d_mean / moments.count
        if affine.center is not mean:
            c = c + b * (affine.center - mean)
        dx, d_residual = kernels.transform_grad(
            dy, x, affine.center, affine.scale, affine.shift, residual, ctx.activation, affine.scale, b, c
        )
        return dx, dy if d_residual is None and ctx.with_residual else d_residual, None, None, *d_parameters

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
) -> tuple[Tensor | None, ...]:
    """Let autograd differentiate the forward formulas, which leaves a graph to differentiate again."""
    # One input may come from another, as in a residual block. Nothing leads from view to view, so that each
    # gradient is of this layer alone.
    inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in saved]
    x, residual, *parameters = inputs
    assert x is not None
    mean, var = reference.moments(x)
    affine = ctx.rule.forward(Moments(mean=mean, var=var, count=_count(x)), *parameters)
    y = reference.transform(x, affine.center, affine.scale, affine.shift, residual, ctx.activation)
    wanted = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    dx, d_residual, *d_parameters = (
        next(gradients) if tensor is not None and tensor.requires_grad else None for tensor in inputs
    )
    return dx, dy if d_residual is None and ctx.with_residual else d_residual, None, None, *d_parameters

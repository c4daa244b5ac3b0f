"""Ghost batch norm: every chunk of a batch normalized by its own moments (Hoffer et al. 2017, arXiv 1705.08741).

The chunks of a large tensor are read and written where they lie, each in one compiled call; nothing is cut or joined.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steadynorm.ops.reference import Activation
from steadynorm.rules.batch_norm import BatchNormRule
from steadynorm.rules.normalize import differentiable_backward

__all__ = ["chunk_count", "cut", "ghost_in_compiled_calls"]


def chunk_count(samples: int, values_per_sample: int, ghost_batch_size: int) -> int:
    """Count the chunks of a batch: the fewest that hold at most ``ghost_batch_size`` samples each.

    Their sizes differ by one at most, so that no small rest is normalized by itself: 100 samples in chunks of 32 are
    four times 25. Fewer where a chunk would have one value per channel.
    """
    fewest_samples = 2 if values_per_sample == 1 else 1
    return max(1, min(-(-samples // ghost_batch_size), samples // fewest_samples))


def ghost_in_compiled_calls(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    chunks: int,
    eps: float,
    residual: Tensor | None,
    activation: Activation | None,
) -> tuple[Tensor, Tensor]:
    """Train on each of some chunks of the batch.

    Args:
        x: what :func:`steadynorm.ops._numba.batch_norm` takes; the others likewise.
        chunks: how many, of sizes as :func:`torch.tensor_split` makes them.

    Returns:
        y in the shape, dtype and memory format of x, differentiable twice; and mean and biased variance of every
        chunk, shape (chunks, 2, C).
    """
    if not (x.is_contiguous() or x.movedim(1, -1).is_contiguous()):
        x = x.contiguous()  # of other layouts the samples may not lie one behind the other
    moments = x.new_empty((chunks, 2, x.shape[1]), dtype=torch.float32)
    y = _apply(x, residual, BatchNormRule(eps), activation, weight, bias, moments)
    return y, moments


class _GhostBatchNorm(torch.autograd.Function):
    """Saves what ``normalize`` does, with the moments of every chunk."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (torch gives no type that has these attributes)
        x: Tensor,
        residual: Tensor | None,
        rule: BatchNormRule,
        activation: Activation | None,
        weight: Tensor | None,
        bias: Tensor | None,
        moments: Tensor,
    ) -> Tensor:
        from steadynorm.ops import _numba

        y, chunks = torch.empty_like(x), len(moments)
        for x_part, residual_part, out, moments_part in zip(
            *(_split(tensor, chunks) for tensor in (x, residual, y)), moments, strict=True
        ):
            _, measured = _numba.batch_norm(
                x_part, residual_part, activation, weight, bias, rule.eps, None, None, 0.0, out=out
            )
            moments_part.copy_(measured)
        ctx.rule, ctx.activation, ctx.with_residual = rule, activation, residual is not None
        # Without an activation the residual's gradient is dy, and nothing else depends on it.
        ctx.save_for_backward(x, None if activation is None else residual, weight, bias, moments)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 (as above)
        x, residual, weight, bias, moments = ctx.saved_tensors
        chunks = len(moments)
        if torch.is_grad_enabled():
            parts = [
                differentiable_backward(ctx, *part, weight, bias)
                for part in zip(*(_split(tensor, chunks) for tensor in (dy, x, residual)), strict=True)
            ]
            dx, d_residual, d_weight, d_bias = (
                None if each[0] is None else torch.cat(each) if joined else torch.stack(each).sum(0)
                for joined, each in zip((True, True, False, False), zip(*parts, strict=True), strict=True)
            )
            return dx, d_residual, None, None, d_weight, d_bias, None
        return *_backward_in_compiled_calls(ctx, dy, x, residual, weight, bias, moments), None


def _backward_in_compiled_calls(
    ctx: Any,  # noqa: ANN401 (as above)
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    moments: Tensor,
) -> tuple[Tensor | None, ...]:
    from steadynorm.ops import _numba

    dx = torch.empty_like(x)
    d_residual = None if residual is None else torch.empty_like(x)
    d_weight, d_bias = (None if tensor is None else torch.zeros_like(tensor) for tensor in (weight, bias))
    for dy_part, x_part, residual_part, dx_part, d_residual_part, moments_part in zip(
        *(_split(tensor, len(moments)) for tensor in (dy, x, residual, dx, d_residual)), moments, strict=True
    ):
        assert dx_part is not None
        _, _, d_weight_part, d_bias_part = _numba.batch_norm_grad(
            dy_part, x_part, residual_part, ctx.activation, weight, bias, ctx.rule.eps, moments_part,
            out=(dx_part, d_residual_part),
        )  # fmt: skip
        for total, part in ((d_weight, d_weight_part), (d_bias, d_bias_part)):
            if total is not None and part is not None:
                total.add_(part)
    if d_residual is None and ctx.with_residual:
        d_residual = dy
    return dx, d_residual, None, None, d_weight, d_bias


# As in one_call.py: without what torch spends on binding signatures.
_apply: Callable[..., Tensor] = super(torch.autograd.Function, _GhostBatchNorm).apply


class _Cut(torch.autograd.Function):
    """Cut into chunks; torch's own joins their gradients without regard to the memory format."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chunks: int) -> tuple[Tensor, ...]:  # noqa: ANN401 (as above)
        ctx.like = torch.empty_like(x, device="meta")
        return x.tensor_split(chunks)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 (as above)
        if torch.is_grad_enabled():
            return torch.cat(dys), None
        dx = torch.empty_like(ctx.like, device=dys[0].device)
        for dx_part, dy in zip(dx.tensor_split(len(dys)), dys, strict=True):
            dx_part.copy_(dy)
        return dx, None


def cut(x: Tensor, chunks: int) -> tuple[Tensor, ...]:
    """Cut a batch into chunks, as :func:`torch.tensor_split` does, with a gradient in the memory format of x."""
    if torch.compiler.is_compiling():  # which chooses formats itself
        return x.tensor_split(chunks)
    parts: tuple[Tensor, ...] = _Cut.apply(x, chunks)  # type: ignore[no-untyped-call]
    return parts


def _split(tensor: Tensor | None, chunks: int) -> tuple[Tensor | None, ...]:
    return (None,) * chunks if tensor is None else tensor.tensor_split(chunks)

"""Ghost batch norm: every chunk of a batch normalized by its own moments (Hoffer et al. 2017, arXiv 1705.08741)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from steadynorm.ops._layout import format_of_result
from steadynorm.ops.observers import is_transformed
from steadynorm.ops.reference import Activation
from steadynorm.rules.batch_norm import BatchNormRule
from steadynorm.rules.formulas import transformed
from steadynorm.statistics import Moments, pool
from steadynorm.statistics.moments import statistics_dtype, two_passes

__all__ = ["chunk_count", "chunk_of_each", "cut", "normalize_chunks_of_any_number"]


def chunk_count(samples: int, values_per_sample: int, ghost_batch_size: int) -> int:
    """Count the chunks of a batch: the fewest that hold at most ``ghost_batch_size`` samples each.

    Their sizes differ by one at most, so that no small rest is normalized alone: 100 samples in chunks of 32 are four
    chunks of 25. There are fewer chunks if one would have one value per channel.
    """
    fewest_samples = 2 if values_per_sample == 1 else 1
    return max(1, min(-(-samples // ghost_batch_size), samples // fewest_samples))


class _Cut(torch.autograd.Function):
    """Split into chunks; torch's own split ignores the memory format when it concatenates the gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chunks: int) -> tuple[Tensor, ...]:  # noqa: ANN401 (torch gives no type that has these attributes)
        ctx.like = torch.empty_like(x, memory_format=format_of_result(x), device="meta")
        return x.tensor_split(chunks)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 (as above)
        if torch.is_grad_enabled() or is_transformed(dys[0]):
            return torch.cat(dys), None
        dx = torch.empty_like(ctx.like, device=dys[0].device)
        for dx_part, dy in zip(dx.tensor_split(len(dys)), dys, strict=True):
            dx_part.copy_(dy)
        return dx, None


def cut(x: Tensor, chunks: int) -> tuple[Tensor, ...]:
    """Split a batch into chunks as :func:`torch.tensor_split` does, with a gradient in torch's memory format."""
    if torch.compiler.is_compiling() or is_transformed():  # compilers choose formats themselves
        return x.tensor_split(chunks)
    parts: tuple[Tensor, ...] = _Cut.apply(x, chunks)  # type: ignore[no-untyped-call]
    return parts


def normalize_chunks_of_any_number(
    x: Tensor,
    rule: BatchNormRule,
    *parameters: Tensor | None,
    ghost_batch_size: int,
    residual: Tensor | None = None,
    activation: Activation | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize every chunk by its own moments, in tensor operations that are the same for every N.

    Args:
        x: shape (N, C, ...); no Python number is taken from its shape.
        rule: as for :func:`steadynorm.rules.normalize`, with its parameters, residual and activation.
        ghost_batch_size: see :func:`chunk_count`.

    Returns:
        y in the shape and dtype of x; the moments of the whole batch, without gradient.
    """
    values = math.prod(x.shape[2:])
    chunk = chunk_of_each(x.shape[0], values, ghost_batch_size, x.device)

    def total(v: Tensor) -> Tensor:
        """Sum over the chunk of each sample, (N, C)."""
        of_samples = v.unsqueeze(2).sum(list(range(2, v.dim() + 1)))
        return torch.zeros_like(of_samples).index_add(0, chunk, of_samples)[chunk]

    counts = x.new_full((x.shape[0], 1), values, dtype=statistics_dtype(x.dtype))
    mean, var = two_passes(x, total, total(counts))
    y = transformed(
        x, rule.forward(Moments(mean=mean, var=var, count=total(counts)), *parameters), residual, activation
    )
    whole, _ = pool(torch.stack((mean, var, counts.expand_as(mean)), 1).detach())
    return y, whole


def chunk_of_each(samples: int, values_per_sample: int, ghost_batch_size: int, device: torch.device) -> Tensor:
    """Return each sample's chunk index, shape (N,), equal to that of :func:`chunk_count` and ``tensor_split``."""
    at = torch.arange(samples, device=device)
    n, values = at.new_full((), samples), at.new_full((), values_per_sample)
    fewest_samples = torch.where(values == 1, 2, 1)
    chunks = torch.minimum(-(-n // ghost_batch_size), n // fewest_samples).clamp(min=1)
    size, larger = n // chunks, n % chunks
    rest = at - larger * (size + 1)  # the first chunks have one more sample
    return torch.where(rest < 0, at // (size + 1), larger + rest // size)

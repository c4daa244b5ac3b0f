"""Ghost batch norm: every chunk of a batch normalized by its own moments (Hoffer et al. 2017, arXiv 1705.08741)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steadynorm.ops._layout import format_of_result
from steadynorm.rules.formulas import is_transformed

__all__ = ["chunk_count", "cut"]


def chunk_count(samples: int, values_per_sample: int, ghost_batch_size: int) -> int:
    """Count the chunks of a batch: the fewest that hold at most ``ghost_batch_size`` samples each.

    Their sizes differ by one at most, so that no small rest is normalized by itself: 100 samples in chunks of 32 are
    four times 25. Fewer where a chunk would have one value per channel.
    """
    fewest_samples = 2 if values_per_sample == 1 else 1
    return max(1, min(-(-samples // ghost_batch_size), samples // fewest_samples))


class _Cut(torch.autograd.Function):
    """Cut into chunks; torch's own joins their gradients without regard to the memory format."""

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
    """Cut a batch into chunks, as :func:`torch.tensor_split` does, with a gradient that lies as torch's does."""
    if torch.compiler.is_compiling() or is_transformed():  # compilers choose formats themselves
        return x.tensor_split(chunks)
    parts: tuple[Tensor, ...] = _Cut.apply(x, chunks)  # type: ignore[no-untyped-call]
    return parts

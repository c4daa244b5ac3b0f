"""Ghost batch norm without state (Hoffer, Hubara & Soudry 2017, arXiv 1705.08741)."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.functional.checks import check_training, normalize_nothing
from steadynorm.ops._layout import laid_out
from steadynorm.ops.dispatch import choose_path
from steadynorm.ops.observers import is_recorded, is_transformed
from steadynorm.ops.reference import Activation
from steadynorm.rules import (
    BatchNormRule,
    chunk_count,
    cut,
    normalize,
    normalize_chunks_of_any_number,
    normalize_fused,
)
from steadynorm.statistics import Moments, as_row, pool

__all__ = ["ghost_batch_norm"]


def ghost_batch_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    ghost_batch_size: int,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    _caller: str = "ghost_batch_norm",
) -> tuple[Tensor, Moments]:
    """Normalize every chunk of a training batch by its own moments.

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`.
        weight: as for :func:`batch_norm`, and the others.
        ghost_batch_size: most samples in a chunk; see :func:`steadynorm.rules.chunk_count`.

    Returns:
        y in the shape and dtype of input, with the strides of torch's batch norm; the moments of the whole batch,
        without gradient.

    Raises:
        ValueError: as :func:`batch_norm` in training.

    Source: Hoffer, Hubara & Soudry 2017 (arXiv 1705.08741), Alg. 1.
    """
    check_training(_caller, input, residual, activation, eps, (None, None, weight, bias))
    samples, channels = input.shape[:2]
    if input.numel() == 0:
        return normalize_nothing(input, weight, bias, residual)
    if is_recorded():
        return normalize_chunks_of_any_number(
            input if is_transformed() else laid_out(input),
            BatchNormRule(eps),
            weight,
            bias,
            ghost_batch_size=ghost_batch_size,
            residual=residual,
            activation=activation,
        )
    chunks = chunk_count(samples, input[0].numel() // channels, ghost_batch_size)
    if choose_path(input, residual, activation, weight, bias, torchs_own=False) == "fused":
        return normalize_fused(
            input, BatchNormRule(eps), weight, bias, chunks=chunks, residual=residual, activation=activation
        )
    residuals = [None] * chunks if residual is None else cut(residual, chunks)
    pieces, parts = zip(
        *(
            normalize(part, BatchNormRule(eps), weight, bias, residual=added, activation=activation)
            for part, added in zip(cut(input, chunks), residuals, strict=True)
        ),
        strict=True,
    )
    return torch.cat(pieces), pool(torch.stack([as_row(part) for part in parts]))[0]

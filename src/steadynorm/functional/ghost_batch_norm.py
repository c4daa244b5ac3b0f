"""Ghost batch norm as a function (Hoffer, Hubara & Soudry 2017, arXiv 1705.08741)."""

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
    r"""Batch-normalize each chunk of a training batch by its own statistics.

    $$
    y = \mathrm{activation}\left(\frac{x - \mathrm{mean}_k}{\sqrt{\mathrm{var}_k + \mathrm{eps}}} \cdot \mathrm{weight}
    + \mathrm{bias} + \mathrm{residual}\right) \qquad k\ \text{the chunk of the sample}
    $$

    For evaluation use :func:`batch_norm`.

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`.
        weight: γ, shape (C,); None counts as 1.
        bias: β, shape (C,); None counts as 0.
        eps: added to the variance; positive.
        ghost_batch_size: largest number of samples in a chunk, at least 1. The fewest possible chunks are made; their
            sizes differ by at most one.
        residual: shape of input, added before the activation; None adds nothing.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"silu"`` or None.

    Returns:
        y in the shape and dtype of input, with the strides of torch's batch norm, and the moments of the whole batch,
            without gradient.

    Raises:
        ValueError: as :func:`batch_norm` in training.
        RuntimeError: as :func:`batch_norm`.

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

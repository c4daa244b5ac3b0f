"""A finite batch whose variance overflows float32, normalized in float64."""

from __future__ import annotations

import re
import warnings

import torch
from torch import Tensor

from steadynorm.ops._layout import laid_out
from steadynorm.ops.observers import unobserved
from steadynorm.ops.reference import Activation
from steadynorm.rules.formulas import normalize_by_formulas
from steadynorm.rules.ghost_batch_norm import cut
from steadynorm.rules.rule import Rule

__all__ = ["instead_of_overflow", "is_looked_at"]

NAMED = 4
"""Channels that a warning lists."""


def is_looked_at(x: Tensor) -> bool:
    """Whether to check for overflow: only if that needs no device synchronization and no graph is recorded."""
    return unobserved(x) and x.is_cpu and x.dtype != torch.float64


def instead_of_overflow(
    y: Tensor,
    x: Tensor,
    overflowed: Tensor,
    rule: Rule,
    *parameters: Tensor | None,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    chunks: int = 1,
) -> Tensor:
    """Return y if x is not finite; else normalize x again, in float64, and warn.

    Args:
        y: the result with float32 statistics.
        x: the batch, shape (N, C, ...), float32 or narrower, on the CPU.
        overflowed: mask of the channels whose float32 variance is not finite, shape (C,).
        rule: as for :func:`steadynorm.rules.normalize`, with its parameters, residual and activation.
        chunks: parts of the batch, each normalized by its own moments.
    """
    if not x.isfinite().all():
        return y
    wide = [None if tensor is None else tensor.double() for tensor in parameters]
    batches = cut(laid_out(x).double(), chunks)
    residuals = [None] * chunks if residual is None else cut(laid_out(residual).double(), chunks)
    parts, moments = zip(
        *(
            normalize_by_formulas(batch, rule, *wide, residual=added, activation=activation)
            for batch, added in zip(batches, residuals, strict=True)
        ),
        strict=True,
    )
    _warn(
        _function_of(rule, chunks),
        overflowed,
        max(each.var[overflowed].max().item() for each in moments),
        x.numel() // x.shape[1],
    )
    return (parts[0] if chunks == 1 else torch.cat(parts)).to(x.dtype)


def _function_of(rule: Rule, chunks: int) -> str:
    """Return the name of a rule's function: ``batch_renorm`` for ``BatchRenormRule``."""
    words = re.findall("[A-Z][a-z]+", type(rule).__name__.removesuffix("Rule"))
    return "_".join([*(["ghost"] if chunks > 1 else []), *words]).lower()


def _warn(function: str, overflowed: Tensor, var: float, count: int) -> None:
    channels = overflowed.nonzero().flatten().tolist()
    listed = ", ".join(map(str, channels[:NAMED])) + (", ..." if len(channels) > NAMED else "")
    warnings.warn(
        f"{function}: the sum of squares of a training batch must fit float32 (3.4e38), got a variance of {var:.0e} "
        f"over {count} values in {len(channels)} of {overflowed.numel()} channels ({listed}). The batch was normalized "
        "in float64, which is slow; running statistics updated by it are no longer finite. Scale the input down, or "
        "call .double() on module and input.",
        RuntimeWarning,
        stacklevel=3,
    )

"""A rule in tensor operations alone, which autograd and every function transform differentiate any number of times."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from steadynorm.ops import reference
from steadynorm.ops.reference import LEAKY_SLOPE, Activation
from steadynorm.rules.rule import Affine, Rule
from steadynorm.statistics import Moments
from steadynorm.statistics.moments import channel_sum, count_of, per_channel, statistics_dtype
from steadynorm.statistics.ranks import Ranks, is_mapped_backward, pool_over

__all__ = ["activated", "is_transformed", "moments_with_graph", "normalize_by_formulas", "transformed"]


def is_transformed(gradient: Tensor | None = None) -> bool:
    """Say whether this is inside a transform of torch.func or torch.jit.trace, or forward-mode derivatives are taken.

    Kernels see the values of a tensor, not what a transform adds to it; an autograd function hides from a transform
    what its backward needs, and TorchScript cannot hold one. So nothing but tensor operations runs there.

    Args:
        gradient: in a backward, the one that has come in: ``is_grads_batched`` maps over it by a vmap of its own.
    """
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or (gradient is not None and is_mapped_backward(gradient))
    )


def normalize_by_formulas(
    x: Tensor,
    rule: Rule,
    *parameters: Tensor | None,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    stored: Moments | None = None,
    ranks: Ranks | None = None,
) -> tuple[Tensor, Moments]:
    """Do what :func:`steadynorm.rules.normalize` does, with moments that have a graph."""
    moments = moments_with_graph(x, ranks) if stored is None else stored
    return transformed(x, rule.forward(moments, *parameters), residual, activation), moments


def moments_with_graph(x: Tensor, ranks: Ranks | None = None) -> Moments:
    """Measure a batch, over the ranks where there are several."""
    if x.numel() == 0:  # zeros that come from x: its rank takes part in the backward
        mean = var = channel_sum(x.to(statistics_dtype(x.dtype)))
    else:
        mean, var = reference.moments(x)
    moments = Moments(mean=mean, var=var, count=count_of(x))
    return moments if ranks is None else pool_over(ranks, moments)


def transformed(x: Tensor, affine: Affine, residual: Tensor | None, activation: Activation | None) -> Tensor:
    """Compute what :func:`steadynorm.ops.reference.transform` does, with nothing in place.

    Under vmap an operation in place refuses a mapped scale beside an input that is not mapped.
    """
    center, scale, shift = (per_channel(numbers, x) for numbers in affine)
    pre = (x.to(statistics_dtype(x.dtype)) - center) * scale + shift
    return activated(pre if residual is None else pre + residual, activation).to(x.dtype)


def activated(pre: Tensor, activation: Activation | None) -> Tensor:
    """Apply an activation, not in place."""
    if activation == "relu":
        return F.relu(pre)
    if activation == "leaky_relu":
        return F.leaky_relu(pre, LEAKY_SLOPE)
    return F.silu(pre) if activation == "silu" else pre

"""A rule in tensor operations alone, which autograd and function transforms can differentiate repeatedly."""

from __future__ import annotations

from torch import Tensor

from steadynorm.ops import reference
from steadynorm.ops.reference import ACTIVATIONS, Activation
from steadynorm.rules.rule import CenterScaleShift, Rule
from steadynorm.statistics import Moments
from steadynorm.statistics.moments import channel_sum, count_of, per_channel, statistics_dtype
from steadynorm.statistics.ranks import Ranks, pool_over

__all__ = ["activated", "moments_with_graph", "normalize_by_formulas", "transformed"]


def normalize_by_formulas(
    x: Tensor,
    rule: Rule,
    *parameters: Tensor | None,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    stored: Moments | None = None,
    ranks: Ranks | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize as :func:`steadynorm.rules.normalize` does, with moments that have a graph."""
    moments = moments_with_graph(x, ranks) if stored is None else stored
    return transformed(x, rule.forward(moments, *parameters), residual, activation), moments


def moments_with_graph(x: Tensor, ranks: Ranks | None = None) -> Moments:
    """Measure a batch, over the ranks where there are several."""
    if x.numel() == 0:  # zeros in the graph of x, so that its rank takes part in the backward
        mean = var = channel_sum(x.to(statistics_dtype(x.dtype)))
    else:
        mean, var = reference.moments(x)
    moments = Moments(mean=mean, var=var, count=count_of(x))
    return moments if ranks is None else pool_over(ranks, moments)


def transformed(x: Tensor, affine: CenterScaleShift, residual: Tensor | None, activation: Activation | None) -> Tensor:
    """Compute what :func:`steadynorm.ops.reference.transform` does, with nothing in place.

    Under vmap an operation in place refuses a mapped scale beside an input that is not mapped.
    """
    center, scale, shift = (per_channel(numbers, x) for numbers in affine)
    pre = (x.to(statistics_dtype(x.dtype)) - center) * scale + shift
    return activated(pre if residual is None else pre + residual, activation).to(x.dtype)


def activated(pre: Tensor, activation: Activation | None) -> Tensor:
    """Apply an activation, not in place."""
    return pre if activation is None else ACTIVATIONS[activation].apply(pre)

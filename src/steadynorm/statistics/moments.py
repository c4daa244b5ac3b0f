"""Mean and variance per channel, and how to merge them.

Shape letters, here and in the kernels: N batch, C channels, S flattened space. A channel has count = N·S values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = [
    "Moments",
    "as_tensor",
    "centred",
    "channel_sum",
    "count_of",
    "join",
    "measure",
    "merge",
    "mixture",
    "per_channel",
    "statistics_dtype",
    "two_passes",
]

SHRINK = 2.0**-12
"""Values are summed in units of 1/SHRINK: a sum of up to 2²⁴ squares then fits where their mean does."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    r"""Mean and variance of each channel over ``count`` values.

    $$
    \mathrm{mean} = \frac{1}{n} \sum x \qquad \mathrm{var} = \frac{1}{n} \sum (x - \mathrm{mean})^2
    $$

    Args:
        mean: shape (C,), float32, or float64 for float64 data.
        var: shape (C,), same dtype; biased: divided by the count.
        count: values per channel n = N·S; a tensor of shape (C,) if channels differ.
    """

    mean: Tensor
    var: Tensor
    count: int | Tensor

    @property
    def var_unbiased(self) -> Tensor:
        """Unbiased variance Σ(x − mean)² / (count − 1), shape (C,); infinite or NaN if count is 1.

        torch normalizes by ``var`` and updates the running variance with ``var_unbiased``.
        """
        if not isinstance(self.count, Tensor) and self.count == 1:
            return self.var * math.inf
        return self.var * (self.count / (self.count - 1))

    def merge(self, other: Moments) -> Moments:
        """Merge with the moments of other values, see :func:`steadynorm.statistics.moments.merge`.

        Args:
            other: of the same channels.

        Returns:
            the moments of both sets of values together; mean 0, var 0 and count 0 if both are empty.
        """
        return join((self, other))

    def blend(self, other: Moments, *, weight: float | Tensor) -> Moments:
        r"""Return the moments of a mixture that draws from ``other`` with probability ``weight``, else from ``self``.

        $$
        m = (1 - w)\,m_1 + w\,m_2 \qquad v = (1 - w)\,v_1 + w\,v_2 + w\,(1 - w)\,(m_1 - m_2)^2
        $$

        Args:
            other: must be finite, even if its weight is 0.
            weight: w in [0, 1], a number or a tensor that broadcasts to (C,); 0 gives ``self``, 1 gives ``other``.

        Returns:
            the moments of the mixture; their count is blended too.
        """
        share = as_tensor(weight, self.mean).expand_as(self.mean)
        means, variances = torch.stack((self.mean, other.mean)), torch.stack((self.var, other.var))
        mean, var = mixture(means, variances, torch.stack((1 - share, share)))
        count = torch.as_tensor((1 - weight) * self.count + weight * other.count)
        return Moments(mean=mean, var=var, count=count)


def mixture(means: Tensor, variances: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of a mixture of distributions: the formula behind every merge.

        mean = Σ s_i·mean_i        var = Σ s_i·(var_i + (mean_i − mean)²)

    Exact except for the rounding of mean_i, which changes var by up to 2·|mean_i − mean| times half a unit in the last
    place of mean_i: in float32, at |mean| = 10⁴ std and mean_i half a std from mean, by 5·10⁻⁴ of var.

    Args:
        means: shape (k, ...), of k parts.
        variances: shape (k, ...), biased.
        shares: broadcasts to them; non-negative, with sum 1 over the parts.

    Returns:
        mean and biased variance, shape (...).

    Source: law of total variance; for shares by count Chan, Golub & LeVeque 1983, "Algorithms for computing the sample
    variance". Schneider et al. 2020 (arXiv 2006.16971) blend running and batch statistics without the last term.
    """
    mean = _average(means, shares)
    return mean, _average(variances + (means - mean).square(), shares)


def _average(values: Tensor, shares: Tensor) -> Tensor:
    """Return Σ s_i·value_i; for equal values exactly that value.

    Shares are rounded, which costs digits of a large mean but not of the distances from it.
    """
    rough = (shares * values).sum(0)
    correction = (shares * (values - rough)).sum(0)
    return torch.where(correction.isnan(), rough, rough + correction)


def merge(means: Tensor, variances: Tensor, counts: Tensor) -> Moments:
    """Merge the moments of several sets of values, with n_i values each: a :func:`mixture` with shares n_i/Σn.

    Args:
        means: shape (k, C), of k sets.
        variances: shape (k, C), biased.
        counts: broadcasts to them. The moments of an empty set may be anything.

    Returns:
        the moments of all values together, with the sum of the counts; mean 0 and var 0 if there are no values.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
    """
    filled, count = counts > 0, counts.sum(0)
    means, variances = torch.where(filled, means, 0), torch.where(filled, variances, 0)
    mean, var = mixture(means, variances, counts / count.clamp(min=1))
    return Moments(mean=mean, var=var, count=count)


def join(parts: Sequence[Moments]) -> Moments:
    """Merge the moments of several sets of values, at least one; see :func:`merge`.

    Returns:
        the moments of all values together; their count is a number if all counts are.
    """
    means, variances = torch.stack([each.mean for each in parts]), torch.stack([each.var for each in parts])
    counts = torch.stack([as_tensor(each.count, each.mean).expand_as(each.mean) for each in parts])
    return replace(merge(means, variances, counts), count=sum(each.count for each in parts))


def measure(x: Tensor) -> Moments:
    r"""Compute mean and variance of each channel, in two passes.

    $$
    m = \frac{1}{n} \sum x \qquad \delta = \frac{1}{n} \sum (x - m) \qquad \mathrm{mean} = m + \delta \qquad
    \mathrm{var} = \frac{1}{n} \sum (x - m)^2 - \delta^2
    $$

    Two passes, because E[x²] − E[x]² in float32 loses every digit of the variance once |mean| is a few thousand
    standard deviations. δ corrects the rounding of m. Sums are scaled by a power of two, which loses no digits, so that
    Σ (x − m)² does not overflow before the variance does.

    Args:
        x: shape (N, C, ...), any floating dtype and any strides.

    Returns:
        Moments in float32 (float64 for float64 input); NaN for an empty batch. A variance too large for the dtype
            (above 3.4e38 in float32) is infinite.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", corrected two-pass.

    >>> measure(torch.tensor([[1.0], [3.0]])).var_unbiased
    tensor([2.])
    """
    count = count_of(x)
    if count == 0:
        nothing = x.new_full(x.shape[1:2], math.nan, dtype=statistics_dtype(x.dtype))
        return Moments(mean=nothing, var=nothing.clone(), count=0)
    mean, var = two_passes(x, channel_sum, count)
    return Moments(mean=mean, var=var, count=count)


def two_passes(x: Tensor, total: Callable[[Tensor], Tensor], count: int | Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance as :func:`measure` does, with any sums.

    Args:
        x: shape (N, C, ...).
        total: sums values of x, to a shape that :func:`per_channel` accepts.
        count: number of values in each sum, broadcasts to that shape; at least 1.
    """
    x = x.to(statistics_dtype(x.dtype)) * SHRINK
    mean = total(x) / count
    rest = x.sub_(per_channel(mean, x))
    correction = total(rest) / count
    squares = total(rest.pow_(2)) / count
    # If both the squares and their correction are infinite, the difference is NaN.
    var = torch.where(squares.isinf(), squares, squares - correction.square())
    # An infinite mean has no correction; torch's estimate is infinite too.
    mean = torch.where(correction.isfinite(), mean + correction, mean)
    return mean / SHRINK, var.clamp(min=0) / SHRINK**2


def centred(x: Tensor, center: Tensor) -> Tensor:
    """Return x − center in at least float32, as a new tensor in the layout of x."""
    return x.to(statistics_dtype(x.dtype), copy=True).sub_(per_channel(center, x))


def count_of(x: Tensor) -> int | Tensor:
    """Count the values per channel; 0 without channels.

    In torch.jit.trace, where sizes are tensors, the count is a tensor in the dtype of the statistics.
    """
    count = x.numel() // max(x.shape[1], 1)
    return count.to(statistics_dtype(x.dtype)) if isinstance(count, Tensor) else count


def channel_sum(x: Tensor) -> Tensor:
    """Sum over all dimensions but 1; shape (C,)."""
    return x.sum([dim for dim in range(x.dim()) if dim != 1])


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """View ``values`` of shape (C,) or (N, C) so that it broadcasts to ``x`` of shape (N, C, ...)."""
    return values.view(*values.shape, *[1] * (x.dim() - 2))


def as_tensor(count: float | Tensor, like: Tensor) -> Tensor:
    """Return a number in the dtype and on the device of ``like``; a symbolic size stays symbolic."""
    return count.to(like) if isinstance(count, Tensor) else like.new_full((), count)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for statistics of data of a dtype: at least float32."""
    return torch.promote_types(dtype, torch.float32)

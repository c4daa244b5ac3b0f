"""Mean and variance per channel, and the algebra that joins those of several batches.

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
    """Per-channel moments of ``count`` values.

    Args:
        mean: shape (C,), float32, or float64 for float64 data.
        var: shape (C,), likewise; the biased variance, Σ(x − mean)² / count.
        count: values per channel, N·S; a tensor of shape (C,) where channels differ.
    """

    mean: Tensor
    var: Tensor
    count: int | Tensor

    @property
    def var_unbiased(self) -> Tensor:
        """Σ(x − mean)² / (count − 1), shape (C,); infinite or NaN where count is 1.

        torch normalizes with ``var`` and stores this one.
        """
        if not isinstance(self.count, Tensor) and self.count == 1:
            return self.var * math.inf
        return self.var * (self.count / (self.count - 1))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of values together; see :func:`merge`.

        Returns:
            Moments whose count is the sum. Merging two empty sets gives mean 0, var 0, count 0.
        """
        return join((self, other))

    def blend(self, other: Moments, *, weight: float | Tensor) -> Moments:
        """Moments of the mixture that draws from ``other`` with probability ``weight`` and else from ``self``.

        Args:
            other: finite, even where its weight is 0.
            weight: in [0, 1], a number or a tensor that broadcasts to (C,); 0 gives ``self``, 1 gives ``other``.

        Returns:
            Moments whose count is blended likewise; see :func:`mixture`.
        """
        share = as_tensor(weight, self.mean).expand_as(self.mean)
        means, variances = torch.stack((self.mean, other.mean)), torch.stack((self.var, other.var))
        mean, var = mixture(means, variances, torch.stack((1 - share, share)))
        count = torch.as_tensor((1 - weight) * self.count + weight * other.count)
        return Moments(mean=mean, var=var, count=count)


def mixture(means: Tensor, variances: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Give mean and variance of a mixture of distributions: the one formula that joins moments.

        mean = Σ s_i·mean_i        var = Σ s_i·(var_i + (mean_i − mean)²)

    Exact but for the rounding of each mean_i, by which var is off by up to 2·|mean_i − mean| times half a unit in the
    last place of mean_i: in float32, at |mean| = 10⁴ std and with mean_i half a std from mean, by 5·10⁻⁴ of itself.

    Args:
        means: shape (k, ...), of k parts.
        variances: likewise, the biased ones.
        shares: broadcasts to them; non-negative, with sum 1 over the parts.

    Source: law of total variance; for shares of counts Chan, Golub & LeVeque 1983, "Algorithms for computing the sample
    variance"; Schneider et al. 2020 (arXiv 2006.16971) blend stored moments and a batch's without the last term.
    """
    mean = _average(means, shares)
    return mean, _average(variances + (means - mean).square(), shares)


def _average(values: Tensor, shares: Tensor) -> Tensor:
    """Give Σ s_i·value_i, which of equal values is that value to the last digit.

    Shares are rounded: of a large mean they lose a few digits, of the distances from it nothing that counts.
    """
    rough = (shares * values).sum(0)
    correction = (shares * (values - rough)).sum(0)
    return torch.where(correction.isnan(), rough, rough + correction)


def merge(means: Tensor, variances: Tensor, counts: Tensor) -> Moments:
    """Join the moments of several sets of values by their counts n_i: a :func:`mixture` of shares n_i/Σn.

    Args:
        means: shape (k, C), of k sets.
        variances: likewise, the biased ones.
        counts: broadcasts to them. The moments of no values may be anything.

    Returns:
        the moments of all values together, with the sum of the counts; mean 0, var 0 where there are none.
    """
    filled, count = counts > 0, counts.sum(0)
    means, variances = torch.where(filled, means, 0), torch.where(filled, variances, 0)
    mean, var = mixture(means, variances, counts / count.clamp(min=1))
    return Moments(mean=mean, var=var, count=count)


def join(parts: Sequence[Moments]) -> Moments:
    """Moments of several sets of values together, at least one; see :func:`merge`.

    Returns:
        Moments whose count is the sum of theirs: a number where theirs are.
    """
    means, variances = torch.stack([each.mean for each in parts]), torch.stack([each.var for each in parts])
    counts = torch.stack([as_tensor(each.count, each.mean).expand_as(each.mean) for each in parts])
    return replace(merge(means, variances, counts), count=sum(each.count for each in parts))


def measure(x: Tensor) -> Moments:
    """Measure the moments of every channel in two passes.

        m = Σ x / count        δ = Σ (x − m) / count
        mean = m + δ           var = Σ (x − m)² / count − δ²

    Two passes, because E[x²] − E[x]² in float32 loses every digit of the variance once |mean| is a few thousand
    standard deviations. δ would be 0 but for rounding; it gives the mean its last digits back. Sums are taken in
    other units, by a power of two, which costs no digit: Σ (x − m)² can overflow where the variance does not.

    Args:
        x: shape (N, C, ...), any floating dtype and any strides.

    Returns:
        Moments in float32 (float64 for float64 input); NaN for an empty batch. A variance above the largest number of
        the dtype (3.4e38, standard deviations above 1.8e19 in float32) is infinite.

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance", corrected two-pass.
    """
    count = count_of(x)
    if count == 0:
        nothing = x.new_full(x.shape[1:2], math.nan, dtype=statistics_dtype(x.dtype))
        return Moments(mean=nothing, var=nothing.clone(), count=0)
    mean, var = two_passes(x, channel_sum, count)
    return Moments(mean=mean, var=var, count=count)


def two_passes(x: Tensor, total: Callable[[Tensor], Tensor], count: int | Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and biased variance as :func:`measure` does, by whatever sums are to be taken.

    Args:
        x: shape (N, C, ...).
        total: sums values of x, to a shape that :func:`per_channel` takes.
        count: how many values it sums, broadcasts to that shape; at least 1.
    """
    x = x.to(statistics_dtype(x.dtype)) * SHRINK
    mean = total(x) / count
    rest = x.sub_(per_channel(mean, x))
    correction = total(rest) / count
    squares = total(rest.pow_(2)) / count
    # Where the squares are infinite their correction may be so as well, and the difference NaN.
    var = torch.where(squares.isinf(), squares, squares - correction.square())
    # An infinite mean has no correction, and is infinite in torch's estimate as well.
    mean = torch.where(correction.isfinite(), mean + correction, mean)
    return mean / SHRINK, var.clamp(min=0) / SHRINK**2


def centred(x: Tensor, center: Tensor) -> Tensor:
    """Compute x − center in at least float32; a tensor of its own in the layout of x, free to be changed in place."""
    return x.to(statistics_dtype(x.dtype), copy=True).sub_(per_channel(center, x))


def count_of(x: Tensor) -> int | Tensor:
    """Count the values per channel; 0 without channels.

    A tensor in torch.jit.trace, where sizes are tensors, of a dtype that divides as well as the statistics need.
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
    """Give a number in the dtype and on the device of ``like``; one that follows from a free size stays free."""
    return count.to(like) if isinstance(count, Tensor) else like.new_full((), count)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Give the dtype in which statistics of such data are computed and stored: at least float32."""
    return torch.promote_types(dtype, torch.float32)

"""Sampling error of a batch's moments, and their distance from the running statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.statistics.moments import Moments, statistics_dtype

__all__ = [
    "apart",
    "moments_by_sample",
    "moments_of_samples",
    "sample_noise",
    "sampling_error",
    "standardized_distance",
    "update_noise_",
]

MOST_SAMPLES = 4
"""Largest number of samples that :func:`sample_noise` uses; with C channels its relative error is about √(2/(3·C))."""


def sample_noise(x: Tensor, batch: Moments) -> Tensor:
    """Estimate the variance of one sample's mean relative to the variance of its values, averaged over channels.

        noise = meanᶜ( var_unbiased over samples of (mean over positions of x) / var )

    The mean of N independent samples has variance var·noise/N, so N/noise is the batch's effective count: N·S if
    positions are independent (noise = 1/S), N if all positions of a sample agree (noise = 1). Counting N·S values would
    treat neighbouring pixels as independent and understate the noise many times over.

    Args:
        x: shape (N, C, ...). At most four samples are used, spread over the batch. N may be a symbolic size.
        batch: the moments of x.

    Returns:
        a tensor of one value. NaN for a single sample or non-finite x. Channels of variance 0 are ignored; 1 if all
            are.
    """
    at = torch.arange(MOST_SAMPLES, device=x.device)
    samples = at.new_full((), x.shape[0])
    picked = samples.clamp(max=MOST_SAMPLES)
    some = x.index_select(0, torch.where(at < picked, at * samples // picked, 0)).to(batch.var.dtype)
    means = some.flatten(2).mean(2) if x.dim() > 2 else some
    among = (at < picked).unsqueeze(1)
    mean = torch.where(among, means, 0).sum(0) / picked
    var = torch.where(among, means - mean, 0).square().sum(0) / (picked - 1)
    varies = batch.var != 0
    told = varies.sum()
    noise = torch.where(varies, var / batch.var, 0).sum() / told.clamp(min=1)
    return torch.where(samples > 1, torch.where(told > 0, noise, 1), torch.nan)


def moments_by_sample(x: Tensor) -> Moments:
    """Compute the moments of each sample and channel.

    Args:
        x: shape (N, C, ...), any floating dtype.

    Returns:
        Moments of shape (N, C), in float32 (float64 for float64 input); for (N, C) input the values themselves, with
            variance 0.
    """
    values = x.to(statistics_dtype(x.dtype))
    if values.dim() == 2:
        return Moments(mean=values, var=torch.zeros_like(values), count=1)
    flat = values.flatten(2)
    mean = flat.mean(2)
    var = (flat - mean.unsqueeze(2)).square_().mean(2)  # torch.var_mean takes some twenty times as long
    return Moments(mean=mean, var=var, count=flat.shape[2])


def moments_of_samples(each: Moments) -> Moments:
    """Merge the moments of samples with equal counts.

        mean = meanₙ meanₙ        var = meanₙ( varₙ + (meanₙ − mean)² )

    Args:
        each: moments of the samples, shape (N, C), preferably in float64.

    Returns:
        Moments of shape (C,).

    Source: law of total variance.
    """
    mean = each.mean.mean(0)
    var = each.var.mean(0) + (each.mean - mean).square_().mean(0)
    return Moments(mean=mean, var=var, count=each.count * len(each.mean))


def sampling_error(each: Moments, batch: Moments) -> tuple[Tensor, Tensor]:
    """Return the squared standard errors of a batch's mean and variance, for independent samples.

        error²(mean) = 1/(N·(N − 1)) · Σₙ (meanₙ − mean)²
        error²(var)  = 1/(N·(N − 1)) · Σₙ (varₙ + (meanₙ − mean)² − var)²

    Positions of one sample may depend on each other, and values may have any distribution.

    Args:
        each: moments of the samples, shape (N, C).
        batch: moments of all of them.

    Returns:
        two tensors of shape (C,); NaN for a single sample.

    Source: the standard error of a mean, applied to two averages over samples.
    """
    number = len(each.mean)
    offset = each.mean - batch.mean
    squares = each.var + offset.square() - batch.var
    scale = number * (number - 1) if number > 1 else float("nan")
    return offset.square().sum(0) / scale, squares.square().sum(0) / scale


@torch.no_grad()
def update_noise_(noise: Tensor, x: Tensor, batch: Moments, *, momentum: float) -> None:
    """Update a running noise with a batch, in place.

        noise = (1 − momentum)·noise + momentum·sample_noise(x, batch)

    A single sample, or non-finite noise, changes nothing.
    """
    seen = sample_noise(x, batch).to(noise.dtype)
    noise.copy_(torch.lerp(noise, torch.where(seen.isfinite(), seen, noise), momentum))


def standardized_distance(batch: Moments, stored: Moments, *, eps: float) -> Tensor:
    """Return the squared distance between two means in units of the stored variance, averaged over channels.

        distance² = meanᶜ( (mean − stored mean)² / (stored var + eps) )

    For a batch of N independent samples of the stored distribution its expectation is noise/N, see
    :func:`sample_noise`.

    Returns:
        a tensor of one value; channels with a non-finite distance are ignored.
    """
    squared = (batch.mean - stored.mean).square() / (stored.var + eps)
    fine = squared.isfinite()
    return torch.where(fine, squared, 0).sum() / fine.sum().clamp(min=1)


def apart(first: Moments, second: Moments, *, eps: float) -> float:
    """Return the distance between two Moments, in standard deviations.

    distance² = meanᶜ( (mean₁ − mean₂)² / (½·(var₁ + var₂) + eps) + (½·log((var₁ + eps) / (var₂ + eps)))² )
    """
    scale = (first.var + second.var) / 2 + eps
    shift = (first.mean - second.mean).square() / scale
    gain = (((first.var + eps) / (second.var + eps)).log() / 2).square()
    return float((shift + gain).mean().sqrt())

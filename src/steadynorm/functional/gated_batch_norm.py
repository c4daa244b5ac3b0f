"""Gated batch norm as a function."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.functional.checks import check_gate, check_training, normalize_nothing
from steadynorm.ops._layout import laid_out
from steadynorm.ops.dispatch import choose_path
from steadynorm.ops.observers import is_transformed
from steadynorm.ops.reference import Activation
from steadynorm.ops.registration import snapshot
from steadynorm.rules import (
    GatedBatchNormRule,
    moments_with_graph,
    normalize,
    normalize_fused,
    transformed,
)
from steadynorm.statistics import Moments, measure, pool, update_running_
from steadynorm.statistics.moments import statistics_dtype
from steadynorm.statistics.noise import update_noise_
from steadynorm.statistics.running import check_momentum

__all__ = ["gated_batch_norm"]


def gated_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    noise: Tensor,
    momentum: float = 0.0,
    noise_momentum: float = 0.0,
    confidence: Tensor | None = None,
    gate: float | None = None,
    samples: int | Tensor | None = None,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    _caller: str = "gated_batch_norm",
) -> tuple[Tensor, Moments]:
    """Normalize a batch by a blend of running and batch statistics, weighted by how reliable the batch is.

    The equations are those of :class:`steadynorm.GatedBatchNorm2d`, in training and in evaluation alike. One value per
    channel is enough.

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`.
        running_mean: μ, shape (C,); updated in place if ``momentum`` is not 0, see
            :func:`steadynorm.statistics.update_running_`.
        running_var: σ², shape (C,); updated with ``running_mean``.
        weight: γ, shape (C,); None counts as 1.
        bias: β, shape (C,); None counts as 0.
        eps: added to the variance; positive.
        noise: variance of one sample's mean relative to the variance of its values, a positive tensor of one value;
            updated in place if ``noise_momentum`` is not 0.
        momentum: weight of this batch in the running statistics, in [0, 1], which are updated after they are used; 0
            leaves them unchanged.
        noise_momentum: weight of this batch in the noise, in [0, 1]; a single sample leaves it unchanged.
        confidence: c, shape (3,); None counts as zeros.
        gate: fixed weight of the batch statistics in [0, 1], instead of the computed one.
        samples: number of leading samples that give the batch statistics; None takes all. A tensor is not read on the
            host, and changes no shapes.
        residual: shape of input, added before the activation; None adds nothing.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"silu"`` or None.

    Returns:
        y in the shape and dtype of input, with the strides of torch's batch norm, and the moments of the whole batch,
            without gradient.

    Raises:
        RuntimeError: ``noise`` or ``confidence`` of the wrong size; otherwise as :func:`batch_norm`.
        ValueError: as :func:`batch_norm` in training, except that one value per channel is enough.

    Source: ours; see :class:`steadynorm.GatedBatchNorm2d`.
    """
    check_momentum(momentum)
    parameters = (running_mean, running_var, weight, bias)
    check_training(_caller, input, residual, activation, eps, parameters, fewest=1)
    check_gate(_caller, noise, confidence)
    if input.numel() == 0:
        return normalize_nothing(input, weight, bias, residual)
    rule, per_channel = GatedBatchNormRule(eps, gate), (weight, bias, running_mean, running_var)
    noise_of_batch = noise.detach().reshape(()).to(running_mean.dtype) / (
        input.shape[0] if samples is None else samples
    )
    if (
        samples is None
        and choose_path(input, residual, activation, *per_channel, noise, confidence, torchs_own=False) == "fused"
        and input.numel() > input.shape[1]
    ):
        return normalize_fused(
            input,
            rule,
            weight,
            bias,
            noise_of_batch,
            confidence,
            running_mean=running_mean,
            running_var=running_var,
            momentum=momentum,
            noise=noise if noise_momentum and input.shape[0] > 1 else None,
            noise_momentum=noise_momentum,
            residual=residual,
            activation=activation,
        )
    # The running statistics are updated in place before the backward.
    stored = map(snapshot, (running_mean, running_var, noise_of_batch))
    inputs = (weight, bias, *stored, confidence)
    if samples is None:
        y, moments = normalize(input, rule, *inputs, residual=residual, activation=activation)
    else:
        affine = rule.forward(_moments_of_first(input, samples), *inputs)
        values = input if is_transformed() else laid_out(input)
        y, moments = transformed(values, affine, residual, activation), measure(input.detach())
    if noise_momentum:
        update_noise_(noise, input, moments, momentum=noise_momentum)
    if momentum:
        update_running_(running_mean, running_var, moments, momentum=momentum)
    return y, moments


def _moments_of_first(x: Tensor, samples: int | Tensor) -> Moments:
    """Measure the first samples; if their number is a tensor, it changes weights but no shapes."""
    if not isinstance(samples, Tensor):
        return moments_with_graph(x[:samples])
    values = x.to(statistics_dtype(x.dtype)).flatten(2) if x.dim() > 2 else x.to(statistics_dtype(x.dtype)).unsqueeze(2)
    mean = values.mean(2)
    var = (values - mean.unsqueeze(2)).square().mean(2)
    counts = torch.where(torch.arange(x.shape[0], device=x.device) < samples, values.shape[2], 0).to(mean.dtype)
    return pool(torch.stack((mean, var, counts.unsqueeze(1).expand_as(mean)), 1))[0]

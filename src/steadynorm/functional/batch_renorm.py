"""Batch renormalization without state (Ioffe 2017, arXiv 1702.03275)."""

from __future__ import annotations

from torch import Tensor

from steadynorm.functional.checks import check_training, normalize_nothing
from steadynorm.ops.dispatch import choose_path
from steadynorm.ops.reference import Activation
from steadynorm.ops.registration import snapshot
from steadynorm.rules import BatchRenormRule, normalize, normalize_fused
from steadynorm.statistics import Moments, update_running_
from steadynorm.statistics.running import check_momentum

__all__ = ["batch_renorm"]


def batch_renorm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    momentum: float = 0.0,
    r_max: Tensor,
    d_max: Tensor,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    _caller: str = "batch_renorm",
) -> tuple[Tensor, Moments]:
    """Normalize a training batch by its own moments, corrected towards the running ones.

        y = activation( ((x − μ_B)/σ_B · r + d) · weight + bias + residual )
        r = clip(σ_B/σ, 1/r_max, r_max)        d = clip((μ_B − μ)/σ, −d_max, d_max)

    where σ² is variance + eps, and r and d are constants to the gradient. One value per channel is enough.

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`.
        running_mean: μ, shape (C,); changed in place by a momentum, see :func:`steadynorm.statistics.update_running_`.
        running_var: likewise.
        weight: as for :func:`batch_norm`, and the others.
        momentum: weight of this batch in the running estimates, which follow after; 0 leaves them as they are.
        r_max: at least 1, a tensor of one value; see :func:`steadynorm.rules.renorm_bounds`.
        d_max: at least 0, likewise.

    Returns:
        y in the shape and dtype of input, with the strides of torch's batch norm; the batch's moments,
        without gradient.

    Raises:
        ValueError: eps is not positive; an unknown activation.
        RuntimeError: a tensor's size is not C; float64 input with float32 parameters; input that is not floating.
        IndexError: input without channels.

    Source: Ioffe 2017 (arXiv 1702.03275), Alg. 1. Its r and d, of which one finds the inverse written.
    """
    check_momentum(momentum)
    parameters = (running_mean, running_var, weight, bias)
    check_training(_caller, input, residual, activation, eps, parameters, fewest=1)
    if input.numel() == 0:
        return normalize_nothing(input, weight, bias, residual)
    rule, per_channel = BatchRenormRule(eps), (weight, bias, running_mean, running_var)
    if (
        input.numel() > input.shape[1]
        and choose_path(input, residual, activation, *per_channel, torchs_own=False) == "fused"
    ):
        return normalize_fused(
            input,
            rule,
            weight,
            bias,
            r_max,
            d_max,
            running_mean=running_mean,
            running_var=running_var,
            momentum=momentum,
            residual=residual,
            activation=activation,
        )
    stored = map(snapshot, (running_mean, running_var, r_max, d_max))  # which have moved on before the backward
    y, moments = normalize(input, rule, weight, bias, *stored, residual=residual, activation=activation)
    if momentum:
        update_running_(running_mean, running_var, moments, momentum=momentum)
    return y, moments

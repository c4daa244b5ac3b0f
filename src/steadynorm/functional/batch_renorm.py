"""Batch renormalization as a function (Ioffe 2017, arXiv 1702.03275)."""

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
    r"""Batch-renormalize a training batch: batch statistics, corrected towards the running statistics.

    $$
    y = \mathrm{activation}\left(\left(\frac{x - \mu_B}{\sigma_B} \cdot r + d\right) \cdot \mathrm{weight} +
    \mathrm{bias} + \mathrm{residual}\right)
    $$

    $$
    r = \mathrm{clip}\left(\frac{\sigma_B}{\sigma}, \frac{1}{r_{max}}, r_{max}\right) \qquad d =
    \mathrm{clip}\left(\frac{\mu_B - \mu}{\sigma}, -d_{max}, d_{max}\right)
    $$

    $\mu$ and $\sigma$ are the running mean and standard deviation, $\mu_B$ and $\sigma_B$ those of the batch; eps is
    added to both variances. r and d are constants to the gradient. One value per channel is enough. For evaluation use
    :func:`batch_norm`.

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`.
        running_mean: μ, shape (C,); updated in place if ``momentum`` is not 0, see
            :func:`steadynorm.statistics.update_running_`.
        running_var: σ², shape (C,); updated with ``running_mean``.
        weight: γ, shape (C,); None counts as 1.
        bias: β, shape (C,); None counts as 0.
        eps: added to the variance; positive.
        momentum: weight of this batch in the running statistics, in [0, 1], which are updated after they are used; 0
            leaves them unchanged.
        r_max: bound of r, at least 1, a tensor of one value.
        d_max: bound of d, at least 0, a tensor of one value.
        residual: shape of input, added before the activation; None adds nothing.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"silu"`` or None.

    Returns:
        y in the shape and dtype of input, with the strides of torch's batch norm, and the batch's moments, without
            gradient.

    Raises:
        ValueError: ``eps`` not positive; ``momentum`` outside [0, 1]; an unknown activation.
        RuntimeError: a tensor of the wrong size; float64 input with float32 parameters; input that is not
            floating-point.
        IndexError: input with fewer than two dimensions.

    Source: Ioffe 2017 (arXiv 1702.03275), Alg. 1. Some texts give the inverse of its r and d.
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
    stored = map(snapshot, (running_mean, running_var, r_max, d_max))  # before the backward these are updated in place
    y, moments = normalize(input, rule, weight, bias, *stored, residual=residual, activation=activation)
    if momentum:
        update_running_(running_mean, running_var, moments, momentum=momentum)
    return y, moments

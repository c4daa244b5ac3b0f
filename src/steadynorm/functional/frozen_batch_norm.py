"""Frozen batch norm as a function: fixed statistics, with a fast backward."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.functional.batch_norm import evaluate
from steadynorm.functional.checks import check_training
from steadynorm.ops.dispatch import choose_path
from steadynorm.ops.reference import Activation
from steadynorm.rules import BatchNormRule, normalize
from steadynorm.statistics import Moments

__all__ = ["frozen_batch_norm"]


def frozen_batch_norm(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    _caller: str = "frozen_batch_norm",
) -> Tensor:
    r"""Normalize each channel by fixed statistics, with a fast backward.

    $$
    y = \mathrm{activation}\left(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \mathrm{eps}}} \cdot \mathrm{weight} +
    \mathrm{bias} + \mathrm{residual}\right)
    $$

    Training and evaluation are the same. The result is that of :func:`batch_norm` in evaluation, by torch's own
    function unless a large tensor needs a gradient. Then one pass over the data computes y, and one computes the
    gradient of input (two if weight or bias need gradients too).

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`.
        mean: shape (C,); gets no gradient.
        var: shape (C,); gets no gradient.
        weight: γ, shape (C,); None counts as 1.
        bias: β, shape (C,); None counts as 0.
        eps: added to the variance.
        residual: shape of input, added before the activation; None adds nothing.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"silu"`` or None.

    Returns:
        shape and dtype of input, with the strides of torch's batch norm.

    Raises:
        ValueError: an unknown activation; ``eps`` out of range.
        RuntimeError: a tensor of the wrong size, or dtypes that do not fit, as in :func:`batch_norm`.

    Source: He et al. 2016 (arXiv 1512.03385), appendix A.
    """
    inputs = (input, residual, weight, bias)
    wanted = isinstance(input, Tensor) and _differentiates(*inputs) and input.numel() > 0  # torch.fx has proxies
    if wanted and choose_path(input, residual, activation, mean, var, weight, bias) == "fused":
        check_training(_caller, input, residual, activation, eps, (mean, var, weight, bias), fewest=1)
        stored = Moments(mean=mean, var=var, count=1)
        return normalize(
            input, BatchNormRule(eps), weight, bias, residual=residual, activation=activation, stored=stored
        )[0]
    return evaluate(_caller, input, mean, var, weight, bias, eps, residual, activation)


def _differentiates(*tensors: Tensor | None) -> bool:
    wanted = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return wanted and torch.is_grad_enabled()

"""Batch norm's evaluation without state, differentiable in as few passes as there can be."""

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
    """Map every channel by stored statistics, in one pass each way where gradients are wanted.

        y = activation( (x − mean) / √(var + eps) · weight + bias + residual )

    The evaluation of :func:`batch_norm`, which is torch's own function, until a large tensor needs a gradient: then
    one pass writes y, and one or two the gradients, two where weight or bias want one.

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`.
        mean: shape (C,); no gradient flows to it.
        var: likewise.
        weight: as for :func:`batch_norm`, and the others.

    Returns:
        shape and dtype of input, the strides of torch's batch norm.

    Raises:
        ValueError: an unknown activation.
        RuntimeError: a tensor's size is not C, or a dtype that does not fit, as torch has it.
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

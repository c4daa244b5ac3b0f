"""Batch normalization without state (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steadynorm.functional.checks import (
    check_activation,
    check_evaluation,
    check_residual,
    check_training,
    normalize_nothing,
)
from steadynorm.functional.way import choose_way
from steadynorm.ops.dispatch import is_recorded
from steadynorm.ops.reference import LEAKY_SLOPE, Activation
from steadynorm.rules import (
    BatchNormRule,
    activated,
    instead_of_overflow,
    is_looked_at,
    is_transformed,
    normalize,
    normalize_in_one_call,
)
from steadynorm.statistics import follow_, weight_of

__all__ = ["batch_norm"]


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """Normalize every channel, and add, and activate.

        y = activation( (x − mean) / √(var + eps) · weight + bias + residual )

    In training, mean and (biased) var are the batch's own and gradients flow through them; the running
    estimates then follow in place, ``running = (1 − momentum)·running + momentum·batch``, the one of the variance
    with the batch's *unbiased* variance. In evaluation mean and var are the running estimates and nothing changes.

    Args:
        input: shape (N, C, ...), float16, bfloat16, float32 or float64; any strides. Arithmetic is float32 at least.
        running_mean: shape (C,), changed in place by training; None keeps no estimate.
        running_var: likewise.
        weight: γ, shape (C,); None counts as 1.
        bias: β, shape (C,); None counts as 0.
        training: whether to normalize with the batch's own statistics.
        momentum: weight of the new batch, in [0, 1]; None averages all batches equally, by ``num_batches_tracked``.
        eps: added to the variance; positive in training.
        residual: shape of input; added before the activation.
        activation: ``relu``, ``leaky_relu`` (slope 0.01), ``silu`` or None.
        num_batches_tracked: batches seen, this one included; read where ``momentum`` is None.

    Returns:
        shape and dtype of input, the strides of torch's batch norm. An empty batch gives an empty result and moves
        no estimate.

    Raises:
        ValueError: training on one value per channel; eps not positive in training, or negative; an unknown activation.
        RuntimeError: a tensor's size is not C; float64 input with float32 parameters, as torch has it; input that
            is not floating.
        IndexError: training on input without channels, as torch has it.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Alg. 1 and 2; torch.nn.functional.batch_norm.
    """
    check_activation(activation)
    if isinstance(input, Tensor) and isinstance(residual, Tensor):  # torch.fx traces with proxies, which have no shape
        check_residual(input, residual)
    if not training:
        if eps < 0:  # older torch gives NaN
            raise ValueError(f"batch_norm: eps must be non-negative, but got {eps}.")
        if isinstance(input, Tensor):
            check_evaluation(input, (running_mean, running_var, weight, bias))
        # torch's own function: compilers, exporters and quantisers recognise it.
        y = F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
        return activated(_added(y, residual), activation)
    check_training(input, eps, (running_mean, running_var, weight, bias))
    if input.numel() == 0:
        return normalize_nothing(input, weight, bias, residual)
    # torch's function takes a number, which a record would keep for all batches.
    averages_all = momentum is None and running_mean is not None and is_recorded()
    how = choose_way(input, residual, activation, weight, bias, running_mean, running_var, torchs_own=not averages_all)
    if how == "torch":
        y = _torch_batch_norm(input, running_mean, running_var, weight, bias, momentum, num_batches_tracked, eps)
        return _activate_(y if residual is None else y.add_(residual), activation)
    if how == "one call":
        return normalize_in_one_call(
            input,
            BatchNormRule(eps),
            weight,
            bias,
            residual=residual,
            activation=activation,
            running_mean=running_mean,
            running_var=running_var,
            momentum=_factor(running_mean, momentum, num_batches_tracked),
        )[0]
    y, moments = normalize(input, BatchNormRule(eps), weight, bias, residual=residual, activation=activation)
    if running_mean is not None and running_var is not None:
        share = weight_of(1, momentum=momentum, tracked=num_batches_tracked, dtype=running_mean.dtype)
        follow_(running_mean, running_var, moments, momentum=share)
    return y


def _added(y: Tensor, residual: Tensor | None) -> Tensor:
    """Add in place, except where something may be mapped that y is not."""
    if residual is None:
        return y
    node = getattr(residual, "node", None)
    if node is not None and node.op == "placeholder" and node.args == (None,):
        # The layer itself is what torch.fx traces: whether there is a residual is not known before the graph runs.
        proxy: Any = residual
        added: Tensor = proxy.tracer.create_proxy("call_function", _added, (y, residual), {})
        return added
    return y + residual if is_transformed() else y.add_(residual)


def _activate_(pre: Tensor, activation: Activation | None) -> Tensor:
    """Activate in place where the derivative can be told from the result."""
    if activation == "relu":
        return pre.relu_()
    return F.leaky_relu_(pre, LEAKY_SLOPE) if activation == "leaky_relu" else activated(pre, activation)


def _factor(running_mean: Tensor | None, momentum: float | None, num_batches_tracked: Tensor | None) -> float:
    """Give the weight of this batch in the running estimates."""
    if running_mean is None:
        return 0.0
    return float(weight_of(1, momentum=momentum, tracked=num_batches_tracked, dtype=torch.float64))


def _torch_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float | None,
    num_batches_tracked: Tensor | None,
    eps: float,
) -> Tensor:
    """Call torch's training function, on the CPU the part of it that also gives 1/√(var + eps), to be looked at."""
    factor = _factor(running_mean, momentum, num_batches_tracked)
    if running_mean is not None and running_var is not None and running_mean.requires_grad | running_var.requires_grad:
        # torch refuses them; ours are no part of the graph.
        running_mean, running_var = running_mean.detach(), running_var.detach()
    # What F.batch_norm checks has been checked.
    if is_looked_at(x):
        y, _, rstd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, factor, eps)
        if rstd.min().item() > 0:
            return y
        return instead_of_overflow(y, x, ~(rstd > 0), BatchNormRule(eps), weight, bias)
    return torch.batch_norm(x, weight, bias, running_mean, running_var, True, factor, eps, torch.backends.cudnn.enabled)

"""Batch normalization without state (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steadynorm.functional.checks import check_evaluation, check_training, normalize_nothing
from steadynorm.ops.dispatch import choose_path
from steadynorm.ops.observers import is_recomputing, is_recorded, is_transformed
from steadynorm.ops.reference import ACTIVATIONS, Activation
from steadynorm.rules import (
    BatchNormRule,
    activated,
    instead_of_overflow,
    is_looked_at,
    normalize,
    normalize_fused,
)
from steadynorm.statistics import Moments, update_running_, weight_of
from steadynorm.statistics.moments import count_of, statistics_dtype

__all__ = ["batch_norm", "batch_norm_with_moments", "evaluate"]


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
    _caller: str = "batch_norm",
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
    if not training:
        return evaluate(_caller, input, running_mean, running_var, weight, bias, eps, residual, activation)
    check_training(_caller, input, residual, activation, eps, (running_mean, running_var, weight, bias))
    if input.numel() == 0:
        return normalize_nothing(input, weight, bias, residual)[0]
    # torch's function takes a number, which a record would keep for all batches.
    averages_all = momentum is None and running_mean is not None and is_recorded()
    path = choose_path(
        input, residual, activation, weight, bias, running_mean, running_var, torchs_own=not averages_all
    )
    if path == "torch":
        share = _share(running_mean, momentum, num_batches_tracked)
        return _by_torch(input, running_mean, running_var, weight, bias, share, eps, residual, activation)
    rule = BatchNormRule(eps)
    if path == "fused":
        return normalize_fused(
            input,
            rule,
            weight,
            bias,
            residual=residual,
            activation=activation,
            running_mean=running_mean,
            running_var=running_var,
            momentum=_share(running_mean, momentum, num_batches_tracked),
        )[0]
    y, moments = normalize(input, rule, weight, bias, residual=residual, activation=activation)
    if running_mean is not None and running_var is not None:
        new = weight_of(1, momentum=momentum, tracked=num_batches_tracked, dtype=running_mean.dtype)
        update_running_(running_mean, running_var, moments, momentum=new)
    return y


def batch_norm_with_moments(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    _caller: str = "batch_norm_with_moments",
) -> tuple[Tensor, Moments]:
    """Normalize a training batch as :func:`batch_norm` does, and give its moments.

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`.
        weight: as for :func:`batch_norm`, and the others.

    Returns:
        y as of :func:`batch_norm`; the batch's moments, without gradient.

    Raises:
        ValueError: as :func:`batch_norm` in training.
    """
    check_training(_caller, input, residual, activation, eps, (None, None, weight, bias))
    if input.numel() == 0:
        return normalize_nothing(input, weight, bias, residual)
    path = choose_path(input, residual, activation, weight, bias)
    if path == "fused":
        return normalize_fused(input, BatchNormRule(eps), weight, bias, residual=residual, activation=activation)
    if path == "composed":
        return normalize(input, BatchNormRule(eps), weight, bias, residual=residual, activation=activation)
    # torch gives a batch's moments only as running estimates, with the unbiased variance. In a recomputation selective
    # checkpointing knows the operations of the first forward alone.
    with torch._C._DisableTorchDispatch() if is_recomputing() else nullcontext():
        mean, var = input.new_zeros((2, input.shape[1]), dtype=statistics_dtype(input.dtype)).unbind()
    y = _by_torch(input, mean, var, weight, bias, 1.0, eps, residual, activation)
    count = count_of(input)
    return y, Moments(mean=mean, var=var * ((count - 1) / count), count=count)


def evaluate(
    where: str,
    input: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    activation: Activation | None,
) -> Tensor:
    """Normalize by stored statistics: torch's own function, which compilers, exporters and quantisers recognise."""
    check_evaluation(where, input, residual, activation, eps, (mean, var, weight, bias))
    y = F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)
    return activated(_added(y, residual), activation)


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


def _share(running_mean: Tensor | None, momentum: float | None, num_batches_tracked: Tensor | None) -> float:
    """Give the weight of this batch in the running estimates."""
    if running_mean is None:
        return 0.0
    return float(weight_of(1, momentum=momentum, tracked=num_batches_tracked, dtype=torch.float64))


def _by_torch(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    share: float,
    eps: float,
    residual: Tensor | None,
    activation: Activation | None,
) -> Tensor:
    """Train by torch's own function, and add and activate in place where the derivative follows from the result."""
    if running_mean is not None and running_var is not None and running_mean.requires_grad | running_var.requires_grad:
        # torch refuses them; ours are no part of the graph.
        running_mean, running_var = running_mean.detach(), running_var.detach()
    # What F.batch_norm checks has been checked.
    if is_looked_at(x):  # the part of it that also gives 1/√(var + eps)
        y, _, rstd = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, share, eps)
        if not rstd.min().item() > 0:
            y = instead_of_overflow(y, x, ~(rstd > 0), BatchNormRule(eps), weight, bias)
    else:
        cudnn = torch.backends.cudnn.enabled
        y = torch.batch_norm(x, weight, bias, running_mean, running_var, True, share, eps, cudnn)
    if residual is not None:
        y = y.add_(residual)
    if activation is None:
        return y
    function = ACTIVATIONS[activation]
    return function.apply_(y) if function.from_result else function.apply(y)

"""Batch normalization as a function (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

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
    r"""Batch-normalize each channel, with an optional fused residual and activation.

    $$
    y = \mathrm{activation}\left(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \mathrm{eps}}} \cdot \mathrm{weight} +
    \mathrm{bias} + \mathrm{residual}\right)
    $$

    In training ``mean`` and ``var`` are the batch statistics (``var`` biased: divided by the count), and gradients flow
    through them. The running statistics are then updated in place, the variance with the *unbiased* batch variance:

    $$
    \mathrm{running} \leftarrow (1 - \mathrm{momentum}) \cdot \mathrm{running} + \mathrm{momentum} \cdot \mathrm{batch}
    $$

    In evaluation ``mean`` and ``var`` are the running statistics, and nothing is updated.

    Args:
        input: shape (N, C, ...), float16, bfloat16, float32 or float64, any strides. Arithmetic is in float32 (float64
            for float64 input).
        running_mean: shape (C,), updated in place by training; None updates nothing.
        running_var: shape (C,), updated with ``running_mean``.
        weight: γ, shape (C,); None counts as 1.
        bias: β, shape (C,); None counts as 0.
        training: whether to normalize by batch statistics.
        momentum: weight of the new batch in the running statistics, in [0, 1]; None averages all batches equally, by
            ``num_batches_tracked``.
        eps: added to the variance; positive in training, non-negative in evaluation.
        residual: shape of input, added before the activation; None adds nothing.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"silu"`` or None.
        num_batches_tracked: number of batches including this one, a tensor of one integer; needed if ``momentum`` is
            None.

    Returns:
        shape and dtype of input, with the strides of torch's batch norm. An empty batch gives an empty result and
            updates nothing.

    Raises:
        ValueError: one value per channel in training; ``eps`` out of range; an unknown activation.
        RuntimeError: a tensor of the wrong size; float64 input with float32 parameters; input that is not
            floating-point.
        IndexError: training input with fewer than two dimensions.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Alg. 1 and 2; conventions of torch.nn.functional.batch_norm.

    >>> x = torch.randn(8, 3, 4, 4)
    >>> batch_norm(x, None, None, training=True, activation="relu").shape
    torch.Size([8, 3, 4, 4])
    """
    if not training:
        return evaluate(_caller, input, running_mean, running_var, weight, bias, eps, residual, activation)
    check_training(_caller, input, residual, activation, eps, (running_mean, running_var, weight, bias))
    if input.numel() == 0:
        return normalize_nothing(input, weight, bias, residual)[0]
    # torch's function takes a number, which a recording would keep for all batches.
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
    """Batch-normalize a training batch and return its moments too.

    The equation is that of :func:`batch_norm` in training; no running statistics are involved.

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`.
        weight: γ, shape (C,); None counts as 1.
        bias: β, shape (C,); None counts as 0.
        eps: added to the variance; positive.
        residual: shape of input, added before the activation; None adds nothing.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"silu"`` or None.

    Returns:
        y in the shape and dtype of input, with the strides of torch's batch norm, and the batch's moments, without
            gradient.

    Raises:
        ValueError: as :func:`batch_norm` in training.
        RuntimeError: as :func:`batch_norm`.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Alg. 1.
    """
    check_training(_caller, input, residual, activation, eps, (None, None, weight, bias))
    if input.numel() == 0:
        return normalize_nothing(input, weight, bias, residual)
    path = choose_path(input, residual, activation, weight, bias)
    if path == "fused":
        return normalize_fused(input, BatchNormRule(eps), weight, bias, residual=residual, activation=activation)
    if path == "composed":
        return normalize(input, BatchNormRule(eps), weight, bias, residual=residual, activation=activation)
    # torch returns a batch's moments only as running statistics, with the unbiased variance. In a recomputation,
    # selective checkpointing accepts only the operations of the first forward, so it must not see this one.
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
    """Evaluate by torch's own function, which compilers, exporters and quantizers recognize."""
    check_evaluation(where, input, residual, activation, eps, (mean, var, weight, bias))
    y = F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)
    return activated(_added(y, residual), activation)


def _added(y: Tensor, residual: Tensor | None) -> Tensor:
    """Add in place, unless a transform maps the residual and not y."""
    if residual is None:
        return y
    node = getattr(residual, "node", None)
    if node is not None and node.op == "placeholder" and node.args == (None,):
        # torch.fx traces the layer itself: only the running graph knows whether there is a residual.
        proxy: Any = residual
        added: Tensor = proxy.tracer.create_proxy("call_function", _added, (y, residual), {})
        return added
    return y + residual if is_transformed() else y.add_(residual)


def _share(running_mean: Tensor | None, momentum: float | None, num_batches_tracked: Tensor | None) -> float:
    """Return the weight of this batch in the running statistics."""
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
    """Train by torch's function; add and activate in place if the gradient can be computed from the result."""
    if running_mean is not None and running_var is not None and running_mean.requires_grad | running_var.requires_grad:
        # torch refuses running statistics that require a gradient; they get none here.
        running_mean, running_var = running_mean.detach(), running_var.detach()
    # The checks of F.batch_norm have been made already.
    if is_looked_at(x):  # native_batch_norm also returns 1/√(var + eps)
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

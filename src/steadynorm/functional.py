"""Stateless entry points: the signatures of ``torch.nn.functional``, with our extras keyword-only."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from steadynorm.ops.dispatch import choose_backend
from steadynorm.ops.reference import ACTIVATIONS, LEAKY_SLOPE, Activation
from steadynorm.rules import BatchNormRule, batch_norm_in_one_call, normalize, takes_one_call
from steadynorm.statistics import Moments, cumulative, exponential
from steadynorm.statistics.running import check_momentum

__all__ = ["Activation", "batch_norm", "check_activation"]


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
        shape, dtype and memory format of input. An empty batch gives an empty result and moves no estimate.

    Raises:
        ValueError: training on one value per channel; eps not positive in training, or negative; an unknown activation.
        RuntimeError: a tensor's size is not C; float64 input with float32 parameters, as torch has it; input that
            is not floating.
        IndexError: training on input without channels, as torch has it.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Alg. 1 and 2; torch.nn.functional.batch_norm.
    """
    check_activation(activation)
    if isinstance(input, Tensor) and isinstance(residual, Tensor):  # torch.fx traces with proxies, which have no shape
        _check_residual(input, residual)
    if not training:
        # torch's own function: compilers, exporters and quantisers recognise it.
        y = F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
        return _activate(y if residual is None else y.add_(residual), activation)
    _check_training(input, eps, (running_mean, running_var, weight, bias))
    if input.numel() == 0:
        return _normalize_nothing(input, weight, bias, residual)
    how = _way(input, residual, activation, running_mean, running_var, weight, bias)
    if how == "torch":
        y = _torch_batch_norm(input, running_mean, running_var, weight, bias, momentum, num_batches_tracked, eps)
        return _activate_(y if residual is None else y.add_(residual), activation)
    if how == "one call":
        factor = _factor(running_mean, momentum, num_batches_tracked)
        return batch_norm_in_one_call(
            input, running_mean, running_var, weight, bias, factor, float(eps), residual, activation
        )
    y, moments = normalize(input, BatchNormRule(eps), weight, bias, residual=residual, activation=activation)
    if running_mean is not None and running_var is not None:
        _update_running(running_mean, running_var, moments, momentum, num_batches_tracked)
    return y


def check_activation(activation: str | None) -> None:
    """Raise ValueError for an activation that no kernel has."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(
            f"batch_norm: activation must be one of {', '.join(map(repr, ACTIVATIONS))} or None, got {activation!r}."
        )


def _activate(pre: Tensor, activation: Activation | None) -> Tensor:
    if activation == "relu":
        return F.relu(pre)
    if activation == "leaky_relu":
        return F.leaky_relu(pre, LEAKY_SLOPE)
    return F.silu(pre) if activation == "silu" else pre


def _activate_(pre: Tensor, activation: Activation | None) -> Tensor:
    """Activate in place where the derivative can be told from the result."""
    if activation == "relu":
        return pre.relu_()
    return F.leaky_relu_(pre, LEAKY_SLOPE) if activation == "leaky_relu" else _activate(pre, activation)


def _way(
    x: Tensor,
    residual: Tensor | None,
    activation: Activation | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Literal["torch", "one call", "rule"]:
    """Choose how to train: by torch's own function, by one compiled call, or by the rule between kernels.

    By the rule where functions are traced or transformed: there our operations stand for themselves, whatever the size.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return "rule"
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    for tensor in (running_mean, running_var, weight, bias):
        if tensor is not None and tensor.dtype != wide:
            return "rule"
    if (running_mean is None) != (running_var is None) or (residual is not None and residual.dtype != x.dtype):
        return "rule"
    chosen = choose_backend(x, residual, fused=activation is not None or residual is not None)
    if chosen == "numba" and takes_one_call(x, running_mean, running_var, weight, bias):
        return "one call"
    return "torch" if chosen == "torch" else "rule"


def _factor(running_mean: Tensor | None, momentum: float | None, num_batches_tracked: Tensor | None) -> float:
    """Give the weight of this batch in the running estimates."""
    if running_mean is None:
        return 0.0
    if momentum is None:
        return 1 / float(_batches(num_batches_tracked))
    check_momentum(momentum)
    return float(momentum)


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
    """Call torch's training function."""
    factor = _factor(running_mean, momentum, num_batches_tracked)
    if running_mean is not None and running_var is not None and running_mean.requires_grad | running_var.requires_grad:
        # torch refuses them; ours are no part of the graph.
        running_mean, running_var = running_mean.detach(), running_var.detach()
    # What F.batch_norm checks has been checked.
    return torch.batch_norm(x, weight, bias, running_mean, running_var, True, factor, eps, torch.backends.cudnn.enabled)


def _batches(num_batches_tracked: Tensor | None) -> Tensor:
    if num_batches_tracked is None:
        raise ValueError("batch_norm: momentum=None averages all batches and needs num_batches_tracked.")
    return num_batches_tracked


_PER_CHANNEL = ("running_mean", "running_var", "weight", "bias")


def _check_training(x: Tensor, eps: float, per_channel: tuple[Tensor | None, ...]) -> None:
    if eps <= 0:
        raise ValueError(f"batch_norm: eps must be positive during training, but got {eps}.")
    if not x.is_floating_point():
        raise RuntimeError(f"batch_norm: input must be of a floating dtype, got {x.dtype}.")
    if x.dim() < 2:
        raise IndexError(f"batch_norm: input must have shape (N, C, ...), got {tuple(x.shape)}.")
    channels = x.shape[1]
    values = x.numel() // channels if channels else x.shape[0] * x.shape[2:].numel()
    if values == 1:
        raise ValueError(
            f"batch_norm: Expected more than 1 value per channel when training, got 1 (input {tuple(x.shape)}). "
            "Use a larger batch or call .eval()."
        )
    for position, tensor in enumerate(per_channel):
        if tensor is not None and (
            tensor.shape != (channels,) or (x.dtype == torch.float64 and tensor.dtype != torch.float64)
        ):
            raise _misfit(x, _PER_CHANNEL[position], tensor)


def _misfit(x: Tensor, name: str, tensor: Tensor) -> RuntimeError:
    if tensor.shape != x.shape[1:2]:
        return RuntimeError(
            f"batch_norm: {name} should contain {x.shape[1]} elements, one per channel of the input "
            f"{tuple(x.shape)}, got shape {tuple(tensor.shape)}."
        )
    return RuntimeError(
        f"batch_norm: float64 input needs float64 parameters and buffers, got {name} in {tensor.dtype}. "
        "Call .double() on the module."
    )


def _check_residual(x: Tensor, residual: Tensor) -> None:
    if residual.shape != x.shape:
        raise RuntimeError(
            f"batch_norm: residual must have the input's shape {tuple(x.shape)}, got {tuple(residual.shape)}."
        )


def _normalize_nothing(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Give the empty result, connected to the graph so that every parameter receives a zero gradient."""
    y = x if residual is None else x + residual
    for tensor in (weight, bias):
        if tensor is not None:
            y = y * tensor.view(-1, *[1] * (x.dim() - 2))
    return y.to(x.dtype)


@torch.no_grad()
def _update_running(
    running_mean: Tensor,
    running_var: Tensor,
    moments: Moments,
    momentum: float | None,
    num_batches_tracked: Tensor | None,
) -> None:
    for running, batch in ((running_mean, moments.mean), (running_var, moments.var_unbiased)):
        if momentum is not None:
            exponential(running, batch, momentum=momentum, out=running)
        else:
            running.copy_(cumulative(running, batch, batches=_batches(num_batches_tracked)))

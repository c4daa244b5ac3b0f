"""Argument checks; ``where`` names the function or layer in the error."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.ops.reference import ACTIVATIONS
from steadynorm.statistics import Moments
from steadynorm.statistics.moments import per_channel as as_wide
from steadynorm.statistics.moments import statistics_dtype

__all__ = [
    "check_activation",
    "check_evaluation",
    "check_gate",
    "check_one_size",
    "check_residual",
    "check_training",
    "normalize_nothing",
]

_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_PER_CHANNEL = ("running_mean", "running_var", "weight", "bias")
PerChannel = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Running mean, running variance, weight and bias."""


def check_activation(where: str, activation: str | None) -> None:
    """Raise ValueError for an unknown activation.

    Args:
        where: name of the function or layer, for the message.
        activation: ``"relu"``, ``"leaky_relu"``, ``"silu"`` or None.

    Raises:
        ValueError: any other value.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(
            f"{where}: activation must be one of {', '.join(map(repr, ACTIVATIONS))} or None, got {activation!r}."
        )


def check_training(
    where: str,
    x: Tensor,
    residual: Tensor | None,
    activation: str | None,
    eps: float,
    per_channel: PerChannel,
    *,
    fewest: int = 2,
) -> None:
    """Raise if a training batch cannot be normalized or another argument does not fit it.

    Args:
        where: name of the function or layer, for the message.
        x: the input.
        residual: must have the same shape.
        activation: must be known.
        eps: must be positive.
        per_channel: tensors that must have shape (C,).
        fewest: smallest number of values per channel, unless there are none at all.
    """
    check_activation(where, activation)
    if eps <= 0:
        raise ValueError(f"{where}: eps must be positive during training, but got {eps}.")
    _check_kind(where, x)
    if residual is not None:
        check_residual(where, x, residual)
    shape = x.shape
    if len(shape) < 2:
        raise IndexError(f"{where}: input must have shape (N, C, ...), got {tuple(shape)}.")
    values = x.numel() // shape[1] if shape[1] else shape[0] * shape[2:].numel()
    if 0 < values < fewest:
        raise ValueError(
            f"{where}: Expected more than 1 value per channel when training, got 1 (input {tuple(shape)}). "
            "Use a larger batch or call .eval()."
        )
    _check_fit(where, x, per_channel)


def check_evaluation(
    where: str, x: Tensor, residual: Tensor | None, activation: str | None, eps: float, per_channel: PerChannel
) -> None:
    """Raise for bad arguments that torch's evaluation would accept; arguments as in :func:`check_training`."""
    check_activation(where, activation)
    if eps < 0:  # older versions of torch return NaN
        raise ValueError(f"{where}: eps must be non-negative, but got {eps}.")
    if not isinstance(x, Tensor):  # torch.fx traces with proxies, which have no shape
        return
    if isinstance(residual, Tensor):
        check_residual(where, x, residual)
    if torch._C._get_tracing_state() is not None:  # sizes are tensors here
        return
    _check_kind(where, x)
    if x.numel() == 0 or any(isinstance(each, Tensor) and each.dim() != 1 for each in per_channel):
        _check_fit(where, x, per_channel)


def check_gate(where: str, noise: Tensor, confidence: Tensor | None) -> None:
    """Raise RuntimeError if the noise or the confidence of a gate has the wrong size."""
    for name, tensor, size in (("noise", noise, 1), ("confidence", confidence, 3)):
        if tensor is not None and tensor.numel() != size:
            raise RuntimeError(
                f"{where}: {name} must have {size} elements, once for all channels, got shape {tuple(tensor.shape)}. "
                "Replace it by a tensor of that size."
            )


def check_one_size(where: str, what: str, x: Tensor) -> None:
    """Raise ValueError for a nested or sparse tensor, whose sizes or values cannot be read."""
    if x.is_nested:
        packed = ", or normalize .values()" if x.layout == torch.jagged else ""
        raise ValueError(
            f"{where}: {what} must be a tensor of one size, got a nested one of layout {x.layout}. Pad it "
            f"(torch.nested.to_padded_tensor) and use MaskedBatchNorm1d{packed}."
        )
    if x.layout is not torch.strided and x.layout in _SPARSE:
        raise ValueError(f"{where}: {what} must be dense, got layout {x.layout}. Call .to_dense() on it.")


def check_residual(where: str, x: Tensor, residual: Tensor) -> None:
    """Raise RuntimeError for a residual of another shape than the input."""
    check_one_size(where, "residual", residual)
    check_one_size(where, "input", x)
    if residual.shape != x.shape:
        raise RuntimeError(
            f"{where}: residual must have the input's shape {tuple(x.shape)}, got {tuple(residual.shape)}."
        )


def _check_kind(where: str, x: Tensor) -> None:
    check_one_size(where, "input", x)
    if not x.is_floating_point():
        raise RuntimeError(f"{where}: input must be of a floating dtype, got {x.dtype}.")


def _check_fit(where: str, x: Tensor, per_channel: PerChannel) -> None:
    size, double = x.shape[1:2], x.dtype == torch.float64
    for name, tensor in zip(_PER_CHANNEL, per_channel, strict=True):
        if not isinstance(tensor, Tensor):
            continue
        if tensor.shape != size:
            raise RuntimeError(
                f"{where}: {name} should contain {size[0]} elements, one per channel of the input "
                f"{tuple(x.shape)}, got shape {tuple(tensor.shape)}."
            )
        if double and tensor.dtype != torch.float64:
            raise RuntimeError(
                f"{where}: float64 input needs float64 parameters and buffers, got {name} in {tensor.dtype}. "
                "Call .double() on the module."
            )


def normalize_nothing(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Moments]:
    """Return an empty result that gives every parameter a zero gradient, and empty moments."""
    y = x if residual is None else x + residual
    for tensor in (weight, bias):
        if tensor is not None:
            y = y * as_wide(tensor, x)
    nothing = x.new_zeros(x.shape[1], dtype=statistics_dtype(x.dtype))
    return y.to(x.dtype), Moments(mean=nothing, var=nothing, count=0)

"""What must hold of the arguments, said once."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.ops.reference import ACTIVATIONS

__all__ = [
    "check_activation",
    "check_evaluation",
    "check_gate",
    "check_one_size",
    "check_residual",
    "check_training",
    "normalize_nothing",
]


def check_activation(activation: str | None) -> None:
    """Raise ValueError for an activation that no kernel has."""
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(
            f"batch_norm: activation must be one of {', '.join(map(repr, ACTIVATIONS))} or None, got {activation!r}."
        )


_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_PER_CHANNEL = ("running_mean", "running_var", "weight", "bias")


def check_training(x: Tensor, eps: float, per_channel: tuple[Tensor | None, ...], *, fewest: int = 2) -> None:
    """Raise for a training batch that cannot be normalized, or parameters that do not fit it.

    Args:
        x: the input.
        eps: must be positive.
        per_channel: running mean, running variance, weight and bias.
        fewest: values per channel that there must be, unless there are none at all.
    """
    if eps <= 0:
        raise ValueError(f"batch_norm: eps must be positive during training, but got {eps}.")
    _check_kind(x)
    if x.dim() < 2:
        raise IndexError(f"batch_norm: input must have shape (N, C, ...), got {tuple(x.shape)}.")
    channels = x.shape[1]
    values = x.numel() // channels if channels else x.shape[0] * x.shape[2:].numel()
    if 0 < values < fewest:
        raise ValueError(
            f"batch_norm: Expected more than 1 value per channel when training, got 1 (input {tuple(x.shape)}). "
            "Use a larger batch or call .eval()."
        )
    _check_fit(x, per_channel)


def check_evaluation(x: Tensor, per_channel: tuple[Tensor | None, ...]) -> None:
    """Raise for what torch's own function lets pass in evaluation, and training refuses.

    Args:
        x: the input.
        per_channel: running mean, running variance, weight and bias.
    """
    if torch._C._get_tracing_state() is not None:  # where sizes are no numbers
        return
    _check_kind(x)
    if x.numel() == 0 or any(isinstance(each, Tensor) and each.dim() != 1 for each in per_channel):
        _check_fit(x, per_channel)


def check_gate(noise: Tensor, confidence: Tensor | None) -> None:
    """Raise RuntimeError for numbers of a gate that are more or fewer than it has."""
    for name, tensor, size in (("noise", noise, 1), ("confidence", confidence, 3)):
        if tensor is not None and tensor.numel() != size:
            raise RuntimeError(
                f"gated_batch_norm: {name} must have {size} elements, once for all channels, got shape "
                f"{tuple(tensor.shape)}. Replace it by a tensor of that size."
            )


def check_one_size(what: str, x: Tensor) -> None:
    """Raise ValueError for a nested or sparse tensor, of which sizes or values could not be read."""
    if x.is_nested:
        packed = ", or normalize .values()" if x.layout == torch.jagged else ""
        raise ValueError(
            f"batch_norm: {what} must be a tensor of one size, got a nested one of layout {x.layout}. Pad it "
            f"(torch.nested.to_padded_tensor) and use MaskedBatchNorm1d{packed}."
        )
    if x.layout in _SPARSE:
        raise ValueError(f"batch_norm: {what} must be dense, got layout {x.layout}. Call .to_dense() on it.")


def _check_kind(x: Tensor) -> None:
    check_one_size("input", x)
    if not x.is_floating_point():
        raise RuntimeError(f"batch_norm: input must be of a floating dtype, got {x.dtype}.")


def _check_fit(x: Tensor, per_channel: tuple[Tensor | None, ...]) -> None:
    channels = x.shape[1]
    for position, tensor in enumerate(per_channel):
        if isinstance(tensor, Tensor) and (
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


def check_residual(x: Tensor, residual: Tensor) -> None:
    """Raise RuntimeError for a residual of another shape."""
    check_one_size("residual", residual)
    check_one_size("input", x)
    if residual.shape != x.shape:
        raise RuntimeError(
            f"batch_norm: residual must have the input's shape {tuple(x.shape)}, got {tuple(residual.shape)}."
        )


def normalize_nothing(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Give the empty result, connected to the graph so that every parameter receives a zero gradient."""
    y = x if residual is None else x + residual
    for tensor in (weight, bias):
        if tensor is not None:
            y = y * tensor.view(-1, *[1] * (x.dim() - 2))
    return y.to(x.dtype)

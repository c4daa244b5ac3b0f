"""What torch.jit.script compiles of a layer: its evaluation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["check_scriptable", "evaluate_scripted"]


def check_scriptable(layer: nn.Module, *, is_batch_norm: bool) -> None:
    """Raise TypeError for a layer whose evaluation is not batch norm's by stored statistics.

    Args:
        layer: any of ours.
        is_batch_norm: whether its class evaluates as batch norm does, where there are running estimates.
    """
    name = type(layer).__name__
    if not is_batch_norm:
        raise TypeError(
            f"{name}: torch.jit.script must find a layer that evaluates as batch norm does, got {name}. Use "
            "torch.export or torch.jit.trace."
        )
    if layer.running_mean is None or layer.running_var is None:
        raise TypeError(
            f"{name}: torch.jit.script must find running estimates, got running_mean=None. Use torch.export or "
            "torch.jit.trace."
        )


def evaluate_scripted(
    input: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
) -> Tensor:
    """Normalize by the running estimates, add, activate, in code that torch.jit.script understands.

    Args:
        input: shape (N, C, ...).
        residual: shape of input, or None.
        mean: shape (C,).
        var: shape (C,).
        weight: shape (C,), or None for 1; of another dtype than mean where the module is of half precision.
        bias: shape (C,), or None for 0; likewise.
        eps: added to the variance.
        activation: ``relu``, ``leaky_relu``, ``silu`` or None.

    Returns:
        shape and dtype of input.
    """
    weight = weight if weight is None else weight.to(mean.dtype)
    bias = bias if bias is None else bias.to(mean.dtype)
    y = F.batch_norm(input, mean, var, weight, bias, False, 0.0, eps)
    if residual is not None:
        if residual.shape != input.shape:
            raise RuntimeError(f"batch_norm: residual must have the input's shape {input.shape}, got {residual.shape}.")
        y = y + residual
    if activation is None:  # TorchScript compares no optional string
        return y
    if activation == "relu":
        return F.relu(y)
    if activation == "leaky_relu":
        return F.leaky_relu(y)  # whose default slope is ours
    return F.silu(y)

"""Gradient norms of a network: for each weight that all arms share, and for all parameters together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from steadynorm.reporting.records import Measurement

__all__ = ["gradient_norms", "layer_gradients", "percentiles", "watched_weights"]


def watched_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the names of the weights of convolutions and linear layers, which are the same in every arm."""
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def gradient_norms(model: nn.Module, watched: Sequence[Tensor]) -> Tensor:
    """Measure the l2 norms of one step.

    Returns:
        shape (len(watched) + 1,): the norm of each watched weight's gradient, 0 without a gradient, and last the norm
        for all parameters together.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    whole = torch.nn.utils.get_total_norm(gradients)
    each = (whole.new_zeros(()) if one.grad is None else torch.linalg.vector_norm(one.grad) for one in watched)
    return torch.stack([*each, whole])


def percentiles(norms: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 5th and the 95th percentile over the steps, the first dimension."""
    low, high = torch.quantile(norms.double(), torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)
    return low, high


def layer_gradients(model: nn.Module, norms: Tensor, *, epoch: int) -> Iterator[Measurement]:
    """Summarise an epoch's norms, shape (steps, watched weights + 1), by watched weight."""
    found = dict(zip(("mean", "p5", "p95"), (norms.mean(0), *percentiles(norms)), strict=True))
    for column, weight in enumerate(watched_weights(model)):
        for name, values in found.items():
            value = values[column].item()
            yield Measurement(subject=weight, step=epoch, quantity=f"grad_norm_{name}", value=value)

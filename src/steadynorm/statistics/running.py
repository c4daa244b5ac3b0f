"""How a running estimate follows the batches."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_momentum", "cumulative", "exponential"]


def check_momentum(momentum: float) -> None:
    """Raise ValueError for what is not the weight of a new batch."""
    if not 0 <= momentum <= 1:
        raise ValueError(
            f"running statistics: momentum is the weight of the new batch, in [0, 1], got {momentum}. "
            "A decay d (0.9 keeps nine tenths) is momentum 1 - d; None gives the cumulative average."
        )


def exponential(running: Tensor, batch: Tensor, *, momentum: float, out: Tensor | None = None) -> Tensor:
    """Blend one batch's statistic into its running estimate.

        new = (1 − momentum) · running + momentum · batch

    Args:
        running: shape (C,); left unchanged, unless it is ``out``.
        batch: shape (C,). For variances, the unbiased one.
        momentum: weight of the new batch, in [0, 1]; 0.1 forgets half in about 6.6 steps.
        out: where the result is written; None makes a new tensor.

    Returns:
        shape (C,), in the wider of the two dtypes.

    Raises:
        ValueError: momentum is outside [0, 1].

    Source: Ioffe & Szegedy 2015, Alg. 2 (unbiased variance); blending as in torch.nn.BatchNorm2d.
    """
    check_momentum(momentum)
    if running.dtype != batch.dtype:
        wide = torch.promote_types(running.dtype, batch.dtype)
        return torch.lerp(running.to(wide), batch.to(wide), momentum, out=out)
    return torch.lerp(running, batch, momentum, out=out)


def cumulative(running: Tensor, batch: Tensor, *, batches: Tensor | int) -> Tensor:
    """Average one batch's statistic with those of all batches before, each with the same weight.

        new = (1 − 1/batches) · running + batch / batches

    Args:
        running: shape (C,), the average of ``batches`` − 1 batches; left unchanged.
        batch: shape (C,). For variances, the unbiased one.
        batches: number of batches seen, this one included. A tensor stays on its device: no value is read
            by the host, so the update can be compiled.

    Returns:
        shape (C,), in the wider of the two dtypes.

    Source: torch.nn.BatchNorm2d with ``momentum=None``.
    """
    weight = 1 / torch.as_tensor(batches, dtype=running.dtype, device=running.device)
    return (1 - weight) * running + weight * batch

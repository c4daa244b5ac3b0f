"""How a running estimate follows the batches."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.statistics.moments import Moments

__all__ = ["check_momentum", "exponential", "update_running_", "weight_of"]


def check_momentum(momentum: float) -> None:
    """Raise ValueError for what is not the weight of a new batch."""
    if not 0 <= momentum <= 1:
        raise ValueError(
            f"running statistics: momentum is the weight of the new batch, in [0, 1], got {momentum}. "
            "A decay d (0.9 keeps nine tenths) is momentum 1 - d; None gives the cumulative average."
        )


def exponential(running: Tensor, batch: Tensor, *, momentum: float | Tensor) -> Tensor:
    """Blend one batch's statistic into its running estimate.

        new = (1 − momentum) · running + momentum · batch

    Args:
        running: shape (C,); left unchanged.
        batch: shape (C,). For variances, the unbiased one.
        momentum: weight of the new batch, in [0, 1]; 0.1 forgets half in about 6.6 steps. The value of a tensor
            is not looked at.

    Returns:
        shape (C,), in the wider of the two dtypes.

    Raises:
        ValueError: momentum is outside [0, 1].

    Source: Ioffe & Szegedy 2015, Alg. 2 (unbiased variance); blending as in torch.nn.BatchNorm2d.
    """
    if not isinstance(momentum, Tensor):
        check_momentum(momentum)
    elif momentum.dtype != running.dtype:
        momentum = momentum.to(running.dtype)
    if running.dtype != batch.dtype:
        wide = torch.promote_types(running.dtype, batch.dtype)
        running, batch = running.to(wide), batch.to(wide)
    return torch.lerp(running, batch, momentum)


def weight_of(
    batches: int | Tensor, *, momentum: float | None, tracked: Tensor | None, dtype: torch.dtype
) -> float | Tensor:
    """Give the weight that the newest batches have together in a running estimate.

        1 − (1 − momentum)^batches        or batches / tracked, the average of all, where momentum is None

    Args:
        batches: how many are new. A tensor's value is not read by the host.
        momentum: weight of one batch, in [0, 1].
        tracked: batches seen, the new ones included; needed where momentum is None.
        dtype: of the running estimate.

    Raises:
        ValueError: momentum is outside [0, 1], or None without a count of batches.

    Source: torch.nn.BatchNorm2d, with ``momentum=None`` too.
    """
    if momentum is None:
        if tracked is None:
            raise ValueError("running statistics: momentum=None averages all batches and needs num_batches_tracked.")
        return batches / tracked.to(dtype)
    check_momentum(momentum)
    if isinstance(batches, Tensor):
        batches = batches.to(dtype)
    elif batches == 1:
        return momentum
    return 1 - (1 - momentum) ** batches


@torch.no_grad()
def update_running_(running_mean: Tensor, running_var: Tensor, batch: Moments, *, momentum: float | Tensor) -> None:
    """Let running estimates follow a batch, in place.

        running_mean = (1 − momentum)·running_mean + momentum·mean
        running_var  = (1 − momentum)·running_var + momentum·var_unbiased

    One value has no variance. What it tells of it is its distance from the running mean, whose square is the variance
    and that of the running mean together, var·(1 + momentum/(2 − momentum)); it counts as (1 − momentum/2) times its
    square, which on data that keeps its distribution is right on average.

    Args:
        running_mean: shape (C,); changed.
        running_var: shape (C,); changed.
        batch: its count may be a tensor; none of its values is read by the host. A channel of count 0 stays as it is.
        momentum: weight of the batch, in [0, 1].
    """
    if not isinstance(batch.count, Tensor) and batch.count > 1:
        running_mean.copy_(exponential(running_mean, batch.mean, momentum=momentum))
        running_var.copy_(exponential(running_var, batch.var_unbiased, momentum=momentum))
        return
    count = torch.as_tensor(batch.count, device=running_mean.device)
    distance = (batch.mean - running_mean).square() * (1 - momentum / 2)
    var = torch.where(count > 1, batch.var * (count / (count - 1).clamp(min=1)), distance)
    for running, new in ((running_var, var), (running_mean, batch.mean)):
        running.copy_(torch.where(count > 0, exponential(running, new, momentum=momentum), running))

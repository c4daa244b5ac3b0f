"""Update of running statistics by the batches."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.statistics.moments import Moments

__all__ = ["check_momentum", "exponential", "update_running_", "weight_of"]


def check_momentum(momentum: float) -> None:
    """Raise ValueError unless momentum is in [0, 1]."""
    if not 0 <= momentum <= 1:
        raise ValueError(
            f"running statistics: momentum is the weight of the new batch, in [0, 1], got {momentum}. "
            "A decay d (0.9 keeps nine tenths) is momentum 1 - d; None gives the cumulative average."
        )


def exponential(running: Tensor, batch: Tensor, *, momentum: float | Tensor) -> Tensor:
    r"""Return running statistics after one batch.

    $$
    \mathrm{new} = (1 - \mathrm{momentum}) \cdot \mathrm{running} + \mathrm{momentum} \cdot \mathrm{batch}
    $$

    Args:
        running: shape (C,); not changed.
        batch: shape (C,); for variances, the unbiased one.
        momentum: weight of the new batch, in [0, 1]; 0.1 forgets half in about 6.6 steps. The value of a tensor is not
            checked.

    Returns:
        shape (C,), in the wider of the two dtypes.

    Raises:
        ValueError: ``momentum`` is outside [0, 1].

    Source: Ioffe & Szegedy 2015, Alg. 2 (unbiased variance); blending as in torch.nn.BatchNorm2d.

    >>> exponential(torch.tensor([1.0]), torch.tensor([2.0]), momentum=0.5)
    tensor([1.5000])
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
    r"""Return the total weight of the newest batches in the running statistics.

    $$
    1 - (1 - \mathrm{momentum})^{\mathrm{batches}} \qquad \text{or, with momentum None,} \qquad
    \frac{\mathrm{batches}}{\mathrm{tracked}}
    $$

    Args:
        batches: number of new batches. A tensor is not read on the host.
        momentum: weight of one batch, in [0, 1]; None averages all batches equally.
        tracked: number of batches including the new ones; needed if momentum is None.
        dtype: dtype of the running statistics.

    Returns:
        a number, or a tensor of one value if a tensor was given.

    Raises:
        ValueError: ``momentum`` is outside [0, 1], or None without ``tracked``.

    Source: torch.nn.BatchNorm2d, including ``momentum=None``.
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
    r"""Update running statistics with a batch, in place.

    $$
    \begin{aligned} \mathrm{running\_mean} &\leftarrow (1 - \mathrm{momentum}) \cdot \mathrm{running\_mean} +
    \mathrm{momentum} \cdot \mathrm{mean} \\ \mathrm{running\_var} &\leftarrow (1 - \mathrm{momentum}) \cdot
    \mathrm{running\_var} + \mathrm{momentum} \cdot \mathrm{var\_unbiased} \end{aligned}
    $$

    A single value has no variance. Its squared distance from the running mean, times (1 − momentum/2), is used instead.
    The factor makes that unbiased for stationary data: the expected squared distance is the variance of the value plus
    that of the running mean, var·(1 + momentum/(2 − momentum)).

    Args:
        running_mean: shape (C,); updated.
        running_var: shape (C,); updated.
        batch: moments of the batch. A count that is a tensor is not read on the host. A channel with count 0 is not
            updated.
        momentum: weight of the batch, in [0, 1].

    Raises:
        ValueError: ``momentum`` is a number outside [0, 1].

    Source: Ioffe & Szegedy 2015, Alg. 2; conventions of torch.nn.BatchNorm2d.
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

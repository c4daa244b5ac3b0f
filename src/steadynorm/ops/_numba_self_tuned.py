"""Self-tuned running statistics in one compiled call.

The arithmetic is that of ``statistics/self_tuned.py``, on a few thousand numbers; it would take fifty tensor
operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from steadynorm.ops._numba_types import Array, compiled, inline

__all__ = ["takes", "update_running_"]


def takes(bank: Sequence[Tensor], *per_channel: Tensor) -> bool:
    """Whether the compiled call takes the tensors: plain, float32, contiguous, on the CPU, of matching shapes."""
    tensors = (*bank, *per_channel)
    return _fit([tensor.shape for tensor in tensors]) and all(
        type(tensor) is Tensor and tensor.is_cpu and tensor.dtype == torch.float32 and tensor.is_contiguous()
        for tensor in tensors
    )


def update_running_(
    bank: Sequence[Tensor],
    step: int,
    learning_rate: float,
    mean: Tensor,
    var: Tensor,
    count: int,
    running_mean: Tensor,
    running_var: Tensor,
) -> None:
    """Update a bank of momenta with a batch, and write its estimates to the running statistics, in place.

    Args:
        bank: experts, mass, noise, weights and momenta of :class:`steadynorm.statistics.SelfTuned`; all but the momenta
            are updated.
        step: batches seen, this one included.
        learning_rate: η/√C.
        mean: mean of the batch, shape (C,).
        var: biased variance of the batch, shape (C,).
        count: values per channel, at least 2.
        running_mean: shape (C,); updated.
        running_var: shape (C,); updated.

    Raises:
        ValueError: the shapes do not match.
    """
    arrays = [tensor.numpy() for tensor in (*bank, mean, var, running_mean, running_var)]
    shapes = [array.shape for array in arrays]
    if not _fit(shapes):
        raise ValueError(
            "steadynorm.ops.update_running_: a bank of K momenta for C channels must have shapes (K, 2, C), (K, 2, 1), "
            f"(2, C), (K, 2) and (K, 1, 1) beside statistics of shape (C,), got {shapes}. Begin a new bank."
        )
    _follow(*arrays, 2.0 / step, learning_rate, float(count))
    increment_version((*bank[:-1], running_mean, running_var))


def _fit(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether the shapes of a bank and of numbers per channel are those that the compiled code reads."""
    if len(shapes[0]) != 3:
        return False
    banks, _, channels = shapes[0]
    bank = [(banks, 2, channels), (banks, 2, 1), (2, channels), (banks, 2), (banks, 1, 1)]
    return shapes == [*bank, *[(channels,)] * (len(shapes) - len(bank))]


@inline
def _lerp(start: float, end: float, weight: float) -> float:
    """Interpolate between start and end as torch does; a non-finite result stays non-finite."""
    return start + weight * (end - start) if weight < 0.5 else end - (end - start) * (1.0 - weight)


@compiled
def _follow(
    experts: Array,  # shape (K, 2, C); changed
    mass: Array,  # shape (K, 2, 1); changed
    noise: Array,  # shape (2, C); changed
    weights: Array,  # shape (K, 2); changed
    momenta: Array,  # shape (K, 1, 1)
    mean: Array,  # shape (C,)
    var: Array,  # shape (C,)
    running_mean: Array,  # shape (C,); changed
    running_var: Array,  # shape (C,); changed
    pace: float,
    learning_rate: float,
    size: float,
) -> None:
    """Weigh the experts by their losses, update them with the batch, and mix them."""
    banks, _, channels = experts.shape
    unbiased = size / (size - 1.0)
    for which in range(2):
        loss = np.zeros(banks)
        for k in range(banks):
            for channel in range(channels):
                seen = mean[channel] if which == 0 else var[channel] * unbiased
                apart = seen - experts[k, which, channel]
                miss = apart * apart * (size / noise[which, channel])
                if np.isfinite(miss):  # else the channel has been constant so far, or is not finite
                    loss[k] += miss
        _judge(weights[:, which], loss, learning_rate, pace)
        last = mass[0, which, 0]
        for channel in range(channels):
            seen = mean[channel] if which == 0 else var[channel] * unbiased
            apart = seen - experts[0, which, channel]
            noise[which, channel] = _lerp(noise[which, channel], apart * apart * (size * last / (size + last)), pace)
        for k in range(banks):
            momentum = momenta[k, 0, 0]
            mass[k, which, 0] = _lerp(mass[k, which, 0], size, momentum)
            weight = momentum * size / mass[k, which, 0]
            for channel in range(channels):
                seen = mean[channel] if which == 0 else var[channel] * unbiased
                experts[k, which, channel] = _lerp(experts[k, which, channel], seen, weight)
    for channel in range(channels):
        middle, between, spread = 0.0, 0.0, 0.0
        for k in range(banks):
            middle += weights[k, 0] * experts[k, 0, channel]
            spread += weights[k, 1] * experts[k, 1, channel]
        for k in range(banks):
            between += weights[k, 0] * (experts[k, 0, channel] - middle) ** 2
        running_mean[channel] = middle
        running_var[channel] = spread + between


@inline
def _judge(weights: Array, loss: Array, learning_rate: float, pace: float) -> None:
    """Weigh the experts by their losses; each then passes a part of its weight to its neighbours."""
    banks = weights.size
    posterior = np.empty(banks)
    for k in range(banks):
        posterior[k] = math.log(weights[k]) - learning_rate * loss[k]
    posterior = np.exp(posterior - posterior.max())
    posterior /= posterior.sum()
    for k in range(banks):
        passed = 0.0
        if k > 0:
            passed += posterior[k - 1] - posterior[k]
        if k + 1 < banks:
            passed += posterior[k + 1] - posterior[k]
        weights[k] = posterior[k] + pace * 0.25 * passed

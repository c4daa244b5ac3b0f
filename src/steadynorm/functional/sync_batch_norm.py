"""Batch normalization over the batches of several processes, without state."""

from __future__ import annotations

from torch import Tensor

from steadynorm.functional.checks import check_training, normalize_nothing
from steadynorm.ops.reference import Activation
from steadynorm.rules import BatchNormRule, normalize
from steadynorm.statistics import Moments
from steadynorm.statistics.ranks import Ranks

__all__ = ["sync_batch_norm"]


def sync_batch_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    ranks: Ranks,
    residual: Tensor | None = None,
    activation: Activation | None = None,
    _caller: str = "sync_batch_norm",
) -> tuple[Tensor, Moments]:
    """Normalize this rank's part of a training batch by the moments of all ranks' parts together.

        y = activation( (x − mean) / √(var + eps) · weight + bias + residual ),   mean and var over all ranks

    One collective forward and one backward, in which every rank must take part, with an empty batch too. The gradient
    of input is that of the sum of all ranks' losses; those of weight and bias are of this rank's input only, for
    DistributedDataParallel to average.

    Args:
        input: shape (N, C, ...), as for :func:`batch_norm`; N may differ between ranks and be 0.
        weight: as for :func:`batch_norm`, and the others.
        ranks: see :func:`steadynorm.statistics.ranks.ranks_of`.

    Returns:
        y in the shape and dtype of input, with the strides of torch's batch norm; the moments of all ranks' input,
        without gradient.

    Raises:
        RuntimeError: a rank has not taken part within the process group's timeout.
        ValueError: as :func:`batch_norm` in training, but for one value per channel, which has no variance: y is bias.
    """
    check_training(_caller, input, residual, activation, eps, (None, None, weight, bias), fewest=1)
    if input.shape[1] == 0:  # nothing to tell each other
        return normalize_nothing(input, weight, bias, residual)
    return normalize(input, BatchNormRule(eps), weight, bias, residual=residual, activation=activation, ranks=ranks)

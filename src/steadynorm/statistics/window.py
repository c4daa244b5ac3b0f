"""A window of batches that update the running statistics together."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.statistics.moments import Moments, as_tensor, merge

__all__ = ["as_row", "pool"]


def as_row(batch: Moments) -> Tensor:
    """Pack mean, var and count into one tensor, a row of a window.

    Args:
        batch: the moments of one batch.

    Returns:
        shape (3, C); all 0 where the batch has no values.
    """
    count = as_tensor(batch.count, batch.mean).expand_as(batch.mean)
    row = torch.stack((batch.mean, batch.var, count))
    return torch.where(count > 0, row, 0)


def pool(window: Tensor) -> tuple[Moments, Tensor]:
    """Merge the batches of a window; see :func:`steadynorm.statistics.moments.merge`.

    Args:
        window: shape (k, 3, C), rows of :func:`as_row`.

    Returns:
        the moments of all values together, and which rows have values, boolean of shape (k,).
    """
    means, variances, counts = window.unbind(1)
    return merge(means, variances, counts), (counts > 0).any(1)

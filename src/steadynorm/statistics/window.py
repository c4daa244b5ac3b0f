"""Several batches that move the running estimates together."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.statistics.moments import Moments, as_tensor, merge

__all__ = ["as_row", "pool"]


def as_row(batch: Moments) -> Tensor:
    """Put mean, var and count into one tensor of shape (3, C), a row of a window; a batch without values is all 0."""
    count = as_tensor(batch.count, batch.mean).expand_as(batch.mean)
    row = torch.stack((batch.mean, batch.var, count))
    return torch.where(count > 0, row, 0)


def pool(window: Tensor) -> tuple[Moments, Tensor]:
    """Join the batches of a window; see :func:`steadynorm.statistics.moments.merge`.

    Args:
        window: shape (k, 3, C), see :func:`as_row`.

    Returns:
        the moments of all values together, and of which batches there were any, shape (k,).
    """
    means, variances, counts = window.unbind(1)
    return merge(means, variances, counts), (counts > 0).any(1)

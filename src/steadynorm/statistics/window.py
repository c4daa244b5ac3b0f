"""Several batches that move the running estimates together."""

from __future__ import annotations

import torch
from torch import Tensor

from steadynorm.statistics.moments import Moments, as_tensor

__all__ = ["as_row", "pool"]


def as_row(batch: Moments) -> Tensor:
    """Put mean, var and count into one tensor of shape (3, C), a row of a window; a batch without values is all 0."""
    count = as_tensor(batch.count, batch.mean).expand_as(batch.mean)
    row = torch.stack((batch.mean, batch.var, count))
    return torch.where(count > 0, row, 0)


def pool(window: Tensor) -> tuple[Moments, Tensor]:
    """Join the batches of a window; see :meth:`Moments.merge`.

        mean = Σ count_i·mean_i / Σ count_i        var = Σ count_i·(var_i + (mean_i − mean)²) / Σ count_i

    Args:
        window: shape (k, 3, C), see :func:`as_row`.

    Returns:
        the moments of all values together, and of which batches there were any, shape (k,).

    Source: Chan, Golub & LeVeque 1983, "Algorithms for computing the sample variance".
    """
    means, variances, counts = window.unbind(1)
    count = counts.sum(0)
    shares = counts / count.clamp(min=1)
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    return Moments(mean=mean, var=var, count=count), (counts > 0).any(1)

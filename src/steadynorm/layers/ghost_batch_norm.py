"""Ghost batch norm layers (Hoffer, Hubara & Soudry 2017, arXiv 1705.08741)."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from steadynorm.functional import ghost_batch_norm
from steadynorm.layers.base import BatchNormBase, Options
from steadynorm.layers.running import check_count

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d"]


class _GhostBatchNorm(BatchNormBase):
    """Shared by the 1d, 2d and 3d layers; see :class:`GhostBatchNorm2d`."""

    _own_options = ("ghost_batch_size",)

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        ghost_batch_size: int,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        check_count(f"{type(self).__name__}: ghost_batch_size counts samples", ghost_batch_size)
        self.ghost_batch_size = ghost_batch_size

    def _train(self, input: Tensor, residual: Tensor | None) -> Tensor:
        y, moments = ghost_batch_norm(
            input,
            *self._parameters_for(self.running_mean),
            eps=self.eps,
            ghost_batch_size=self.ghost_batch_size,
            residual=residual,
            activation=self.activation,
            _caller=type(self).__name__,
        )
        self._update_running(moments)
        return y


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """Ghost batch norm over (N, C) or (N, C, L) input.

    Arguments and behaviour are those of :class:`GhostBatchNorm2d`.
    """


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    r"""Ghost batch norm over (N, C, H, W) input, which normalizes each chunk of a large batch separately.

    $$
    y = \mathrm{activation}\left(\frac{x - \mathrm{mean}_k}{\sqrt{\mathrm{var}_k + \mathrm{eps}}} \cdot \mathrm{weight}
    + \mathrm{bias} + \mathrm{residual}\right) \qquad k\ \text{the chunk of the sample}
    $$

    In training the batch is split along N into the fewest chunks of at most ``ghost_batch_size`` samples; chunk sizes
    differ by at most one (100 samples in chunks of 32: four chunks of 25), so no chunk is much smaller than the others.
    A batch with two values per channel is not split. The running statistics are updated once per forward by the moments
    of the whole batch, as in batch norm. Evaluation is that of batch norm, at any batch size.

    Takes the arguments of :class:`steadynorm.BatchNorm2d`, and by keyword:

    Args:
        ghost_batch_size: largest number of samples in a chunk; at N or more this is batch norm.

    Raises:
        ValueError: ``ghost_batch_size`` is below 1; otherwise as :class:`steadynorm.BatchNorm2d`.

    Source: Hoffer, Hubara & Soudry 2017 (arXiv 1705.08741), Alg. 1, which updates the running statistics chunk by
    chunk.

    >>> GhostBatchNorm2d(64, ghost_batch_size=32)(torch.randn(100, 64, 2, 2)).shape
    torch.Size([100, 64, 2, 2])
    """


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """Ghost batch norm over (N, C, D, H, W) input.

    Arguments and behaviour are those of :class:`GhostBatchNorm2d`.
    """

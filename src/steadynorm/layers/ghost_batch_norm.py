"""Ghost batch norm for 2-d to 5-d input (Hoffer, Hubara & Soudry 2017, arXiv 1705.08741)."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from steadynorm.functional import ghost_batch_norm
from steadynorm.layers.base import BatchNormBase, Options
from steadynorm.layers.running import check_count

__all__ = ["GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d"]


class _GhostBatchNorm(BatchNormBase):
    """What the three dimensionalities share; see :class:`GhostBatchNorm2d`."""

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
    """Ghost batch norm over (N, C) or (N, C, L) input; everything else as :class:`GhostBatchNorm2d`."""


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """Ghost batch norm over (N, C, H, W) input: a large batch normalized as small ones would be.

        y = activation( (x − mean_k) / √(var_k + eps) · weight + bias + residual ),   k the chunk of the sample

    In training the batch is cut along N into the fewest chunks of at most ``ghost_batch_size`` samples, of sizes that
    differ by one at most (100 in chunks of 32: four times 25), so that no rest is normalized by a few samples of its
    own; one of two values per channel is never cut. The running estimates follow the moments of the whole batch, once
    a forward, as batch norm's do. Evaluation is batch norm's, at any batch size.

    Takes the arguments of :class:`steadynorm.BatchNorm2d`, and keyword-only:

    Args:
        ghost_batch_size: most samples in a chunk; from N on this is batch norm.

    Raises:
        ValueError: ``ghost_batch_size`` is below 1; otherwise as :class:`steadynorm.BatchNorm2d`.

    Source: Hoffer, Hubara & Soudry 2017 (arXiv 1705.08741), Alg. 1, which moves the running estimates chunk by chunk.

    >>> GhostBatchNorm2d(64, ghost_batch_size=32)(torch.randn(100, 64, 2, 2)).shape
    torch.Size([100, 64, 2, 2])
    """


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """Ghost batch norm over (N, C, D, H, W) input; everything else as :class:`GhostBatchNorm2d`."""

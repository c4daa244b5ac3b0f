"""Frozen batch norm for 2-d to 5-d input: an affine map per channel from stored statistics, in training too."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from steadynorm.functional import frozen_batch_norm
from steadynorm.layers.base import BatchNormBase, Options

__all__ = ["FrozenBatchNorm1d", "FrozenBatchNorm2d", "FrozenBatchNorm3d"]


class _FrozenBatchNorm(BatchNormBase):
    """What the three dimensionalities share; see :class:`FrozenBatchNorm2d`."""

    _is_frozen = True
    _statistics_are = "statistics to freeze"

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
        freeze_affine: bool = True,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        for parameter in self.parameters(recurse=False):
            parameter.requires_grad_(not freeze_affine)

    def _tracks(self) -> bool:
        return False

    def _train(self, input: Tensor, residual: Tensor | None) -> Tensor:
        return self._evaluate(input, residual)

    def _evaluate(self, input: Tensor, residual: Tensor | None) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None
        return frozen_batch_norm(
            input,
            self.running_mean,
            self.running_var,
            *self._parameters_for(self.running_mean),
            eps=self.eps,
            residual=residual,
            activation=self.activation,
            _caller=type(self).__name__,
        )


class FrozenBatchNorm1d(_FrozenBatchNorm, nn.BatchNorm1d):
    """Frozen batch norm over (N, C) or (N, C, L) input; everything else as :class:`FrozenBatchNorm2d`."""


class FrozenBatchNorm2d(_FrozenBatchNorm, nn.BatchNorm2d):
    """Frozen batch norm over (N, C, H, W) input: what batch norm does in evaluation, in either mode.

        y = activation( (x − running_mean) / √(running_var + eps) · weight + bias + residual )

    The statistics are those loaded, and nothing moves them: neither ``.train()``, nor ``momentum``, nor the batches.
    Samples do not see each other, so any batch size trains; the gradient of x is dy·weight/√(running_var + eps).

    Takes the arguments of :class:`steadynorm.BatchNorm2d`, of which those that say how the running estimates follow
    have no effect, and keyword-only:

    Args:
        freeze_affine: whether weight and bias are frozen too (``requires_grad=False``) or learned.

    Raises:
        ValueError: ``track_running_stats=False``.

    Source: He et al. 2016 (arXiv 1512.03385), appendix A, for detection; Wu & Johnson 2021 (arXiv 2105.07576).

    >>> norm = FrozenBatchNorm2d(64, activation="relu")
    >>> _ = norm.load_state_dict(torch.nn.BatchNorm2d(64).state_dict())
    >>> norm(torch.randn(1, 64, 1, 1)).shape
    torch.Size([1, 64, 1, 1])
    """


class FrozenBatchNorm3d(_FrozenBatchNorm, nn.BatchNorm3d):
    """Frozen batch norm over (N, C, D, H, W) input; everything else as :class:`FrozenBatchNorm2d`."""

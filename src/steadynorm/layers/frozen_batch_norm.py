"""Frozen batch norm layers: an affine map per channel from the running statistics, in training too."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from steadynorm.functional import frozen_batch_norm
from steadynorm.layers.base import BatchNormBase, Options

__all__ = ["FrozenBatchNorm1d", "FrozenBatchNorm2d", "FrozenBatchNorm3d"]


class _FrozenBatchNorm(BatchNormBase):
    """Shared by the 1d, 2d and 3d layers; see :class:`FrozenBatchNorm2d`."""

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
    """Frozen batch norm over (N, C) or (N, C, L) input.

    Arguments and behaviour are those of :class:`FrozenBatchNorm2d`.
    """


class FrozenBatchNorm2d(_FrozenBatchNorm, nn.BatchNorm2d):
    r"""Frozen batch norm over (N, C, H, W) input, which normalizes by its running statistics in training too.

    $$
    y = \mathrm{activation}\left(\frac{x - \mathrm{running\_mean}}{\sqrt{\mathrm{running\_var} + \mathrm{eps}}} \cdot
    \mathrm{weight} + \mathrm{bias} + \mathrm{residual}\right)
    $$

    Training and evaluation compute the same result. The running statistics stay as loaded: no batch, ``.train()`` or
    ``momentum`` changes them. Samples are independent of each other, so any batch size can train; the gradient of x
    is dy · weight / √(running_var + eps).

    Takes the arguments of :class:`steadynorm.BatchNorm2d`, and by keyword the one below; ``momentum``, ``nonfinite``,
    ``update_every`` and ``running`` have no effect.

    Args:
        freeze_affine: whether weight and bias are frozen too (``requires_grad=False``).

    Raises:
        ValueError: ``track_running_stats=False``.

    Source: He et al. 2016 (arXiv 1512.03385), appendix A, for detection; Wu & Johnson 2021 (arXiv 2105.07576).

    >>> norm = FrozenBatchNorm2d(64, activation="relu")
    >>> _ = norm.load_state_dict(torch.nn.BatchNorm2d(64).state_dict())
    >>> norm(torch.randn(1, 64, 1, 1)).shape
    torch.Size([1, 64, 1, 1])
    """


class FrozenBatchNorm3d(_FrozenBatchNorm, nn.BatchNorm3d):
    """Frozen batch norm over (N, C, D, H, W) input.

    Arguments and behaviour are those of :class:`FrozenBatchNorm2d`.
    """

"""Batch normalization over the batches of several processes, of any backend and device, for 2-d to 5-d input."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steadynorm.functional import sync_batch_norm
from steadynorm.layers.base import Options
from steadynorm.layers.batch_norm import _BatchNorm
from steadynorm.layers.name import describe
from steadynorm.layers.tracers import check_not_recorded
from steadynorm.statistics.moments import statistics_dtype
from steadynorm.statistics.ranks import Ranks, check_agreement, ranks_of

__all__ = ["OverRanks", "SyncBatchNorm"]


class OverRanks(_BatchNorm):
    """What layers that normalize over ranks share: the process group, and that its ranks must agree."""

    if TYPE_CHECKING:  # TorchScript reads a class's annotations, and does not know such types
        process_group: dist.ProcessGroup | None
        _agreed: set[tuple[object, ...]]

    def _ranks(self, input: Tensor) -> Ranks | None:
        """Give the ranks to normalize over in this forward, having seen once that they agree; None for none."""
        if not self.training:
            return None
        compiled = torch.compiler.is_compiling()
        ranks = ranks_of(self.process_group, None if compiled else partial(describe, self))
        if ranks is None:
            return None
        check_not_recorded(self)
        if not compiled:
            what = (input.shape[1], statistics_dtype(input.dtype))
            if (ranks.group, *what) not in self._agreed:
                check_agreement(ranks, *what, input.device)
                self._agreed.add((ranks.group, *what))
        return ranks

    def _train(self, input: Tensor, residual: Tensor | None) -> Tensor:
        ranks = self._ranks(input)
        if ranks is None:
            return super()._train(input, residual)
        y, moments = sync_batch_norm(
            input,
            *self._parameters_for(self.running_mean),
            eps=self.eps,
            ranks=ranks,
            residual=residual,
            activation=self.activation,
            _caller=type(self).__name__,
        )
        self._update_running(moments)
        return y

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what ranks have agreed on: they need not all have been given the same copy."""
        return {**vars(self), "_agreed": set()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy all but the process group, which cannot be copied."""
        memo[id(self.process_group)] = self.process_group
        other = memo[id(self)] = type(self).__new__(type(self))
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return other


class SyncBatchNorm(OverRanks, nn.modules.batchnorm._BatchNorm):
    """Batch normalization over (N, C) to (N, C, D, H, W) input, in training by the moments of all ranks' batches.

        y = activation( (x − mean) / √(var + eps) · weight + bias + residual ),   mean and var over all ranks

    Every rank gets what one process would on the batches put together: y, running estimates, gradients. N may differ
    between ranks and be 0 on some. A training forward costs one collective and its backward another, so every rank
    must run as many of both; evaluation costs none, and without running estimates is of each rank alone, as torch's.
    With one process, or before ``init_process_group``, this is batch norm. At the first forward that is not compiled,
    ranks compare their numbers of channels in one more collective: in the others, different sizes would hang or end
    the process.

    The gradient of x is that of the sum of all ranks' losses. Those of weight and bias are of this rank's x only:
    DistributedDataParallel averages them, as all others. Any backend and device, gloo on CPUs included; not an instance
    of :class:`torch.nn.SyncBatchNorm`, which DistributedDataParallel refuses there.

    Takes the arguments of :class:`torch.nn.SyncBatchNorm`, and those of :class:`steadynorm.BatchNorm2d` by keyword.

    Args:
        process_group: whose ranks share their moments; None is the default group. A deep copy keeps the group; a
            layer with one cannot be pickled, its state dict can.

    Raises:
        RuntimeError: ranks have different numbers of channels or statistics of different dtype; a rank has not taken
            part within the process group's timeout. Both name the layer.
        ValueError: one value per channel where there is one process; otherwise as :class:`steadynorm.BatchNorm2d`.

    Source: conventions of torch.nn.SyncBatchNorm; Chan, Golub & LeVeque 1983 for merging moments.

    >>> norm = SyncBatchNorm(64, activation="relu")
    >>> norm(torch.randn(8, 64, 4, 4)).shape
    torch.Size([8, 64, 4, 4])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        self.process_group = process_group
        self._agreed = set()

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

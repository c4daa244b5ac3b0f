"""Batch normalization over the batches of several processes, on any backend and device."""

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
    """Shared by layers that normalize over ranks: the process group, and the check that ranks agree."""

    if TYPE_CHECKING:  # TorchScript reads a class's annotations, and does not support these types
        process_group: dist.ProcessGroup | None
        _agreed: set[tuple[object, ...]]

    def _ranks(self, input: Tensor) -> Ranks | None:
        """Return the ranks of this forward, after checking once that they agree; None without other ranks."""
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
        """Drop the record of passed checks: other ranks may not hold a copy, so it must be checked again."""
        return {**vars(self), "_agreed": set()}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy all but the process group, which cannot be copied."""
        memo[id(self.process_group)] = self.process_group
        other = memo[id(self)] = type(self).__new__(type(self))
        other.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return other


class SyncBatchNorm(OverRanks, nn.modules.batchnorm._BatchNorm):
    r"""Batch normalization over (N, C, ...) input, which trains with the batch statistics of all ranks together.

    $$
    y = \mathrm{activation}\left(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \mathrm{eps}}} \cdot \mathrm{weight} +
    \mathrm{bias} + \mathrm{residual}\right) \qquad \mathrm{mean}, \mathrm{var}\ \text{over all ranks}
    $$

    In training every rank gets the outputs, running statistics and gradients that one process would get on the
    concatenated batches. N may differ between ranks and may be 0. Each training forward and each backward costs one
    collective, so every rank must run the same number of both. With one process, or before ``init_process_group``, this
    is batch norm. In evaluation there is no communication; without running statistics each rank uses its own batch, as
    torch's layer does.

    The gradient of x is that of the sum of all ranks' losses. The gradients of weight and bias are those of this rank's
    x; DistributedDataParallel averages them like any other. The first forward that is not compiled compares the ranks'
    channels and dtypes in one more collective, because a mismatch would otherwise hang or end the process.

    Works on any backend and device, including gloo on CPUs. It is not an instance of :class:`torch.nn.SyncBatchNorm`,
    which DistributedDataParallel refuses on CPUs.

    Takes the arguments of :class:`torch.nn.SyncBatchNorm`, and those of :class:`steadynorm.BatchNorm2d` by keyword:

    Args:
        process_group: group whose ranks share batch statistics; None is the default group. A deep copy keeps the group.
            A layer with a group cannot be pickled, but its state dict can.

    Raises:
        RuntimeError: ranks have different numbers of channels or different dtypes of statistics; a rank did not take
            part within the process group's timeout. Both messages name the layer.
        ValueError: one value per channel with a single process; otherwise as :class:`steadynorm.BatchNorm2d`.

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

"""Batch normalization of padded sequences, by the values that are not padding."""

from __future__ import annotations

from typing import Unpack

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steadynorm.functional import masked_batch_norm, valid_positions
from steadynorm.functional.checks import check_residual
from steadynorm.layers.base import Options
from steadynorm.layers.sync_batch_norm import OverRanks
from steadynorm.layers.tracers import check_is_tensor
from steadynorm.ops._layout import laid_out
from steadynorm.ops.observers import is_recorded, is_transformed
from steadynorm.statistics import Moments
from steadynorm.statistics.moments import as_tensor
from steadynorm.statistics.ranks import Ranks

__all__ = ["MaskedBatchNorm1d"]


class MaskedBatchNorm1d(OverRanks, nn.BatchNorm1d):
    r"""Batch normalization over padded (N, C, L) or (N, C) input, which ignores the padding.

    $$
    y = \mathrm{activation}\left(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \mathrm{eps}}} \cdot \mathrm{weight} +
    \mathrm{bias} + \mathrm{residual}\right) \text{ where valid,} \qquad y = x \text{ elsewhere}
    $$

    In training ``mean`` and ``var`` are the batch statistics of the valid positions and update the running statistics,
    as batch norm over the valid positions packed together would. In evaluation they are the running statistics. Padding
    is neither counted nor changed: it passes through unchanged, as does its gradient, and NaN in it affects nothing
    else. A batch without valid positions changes neither the running statistics nor
    ``num_batches_tracked`` (with ``update_every`` it counts towards the window). Without mask and lengths this is
    :class:`steadynorm.BatchNorm1d`.

    The layer never reads mask or lengths on the host, so it cannot refuse a batch with one valid value per channel. The
    output is then the bias; see :func:`steadynorm.statistics.update_running_` for the running variance.

    Takes the arguments of :class:`steadynorm.BatchNorm1d`, and by keyword:

    Args:
        synchronized: whether training uses the moments of all ranks of the default process group, as
            :class:`steadynorm.SyncBatchNorm` does. Each valid value has the same weight, whatever its rank.
        process_group: use the ranks of this group instead; implies ``synchronized``.

    Raises:
        ValueError: mask or lengths of the wrong shape or dtype, or both given; otherwise as
            :class:`steadynorm.BatchNorm1d`.
        RuntimeError: as :class:`steadynorm.SyncBatchNorm`, if synchronized.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Alg. 1 and 2, over the valid positions.

    >>> norm = MaskedBatchNorm1d(64)
    >>> norm(torch.randn(3, 64, 10), lengths=torch.tensor([10, 7, 4])).shape
    torch.Size([3, 64, 10])
    """

    _can_be_scripted = False
    _own_options = ("synchronized",)

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
        synchronized: bool = False,
        process_group: dist.ProcessGroup | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        self.synchronized = synchronized or process_group is not None
        self.process_group = process_group
        self._agreed = set()

    def forward(  # type: ignore[override]  # the mask comes second: it is the purpose of this layer
        self,
        input: Tensor,
        mask: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Normalize the valid positions, add the residual and apply the activation.

        Args:
            input: shape (N, C, L) or (N, C).
            mask: boolean, shape (N, L) or (N,); True where valid. With neither mask nor lengths every position is
                valid.
            lengths: instead of mask, integers of shape (N,): the first lengths[i] positions of sample i are valid.
            residual: shape of input, added before the activation at valid positions; None adds nothing.

        Returns:
            shape and dtype of input.
        """
        if mask is None and lengths is None:
            return super().forward(input, residual)
        check_is_tensor(self, input, instead="Call .eval() and leave out mask and lengths")
        self._check_input_dim(input)
        valid = valid_positions(input, mask, lengths, _caller=type(self).__name__)
        if residual is not None:
            check_residual(type(self).__name__, input, residual)
        if self.training or (self.running_mean is None and self.running_var is None):
            self._fit_state()
            if is_transformed() or is_recorded():
                self._check_transform(input)
            if torch.compiler.is_compiling():
                return self._train_compiled(self._train_valid, input, valid, residual)
            return self._train_valid(input, valid, residual)
        # Zero the padding first: otherwise NaN in it would reach the gradients of weight and activation.
        kept, added = (None if each is None else torch.where(valid, each, 0) for each in (input, residual))
        assert kept is not None
        return torch.where(valid, self._evaluate(kept, added), input if is_transformed() else laid_out(input))

    def _train_valid(self, input: Tensor, valid: Tensor, residual: Tensor | None) -> Tensor:
        y, moments = masked_batch_norm(
            input,
            valid,
            *self._parameters_for(self.running_mean),
            eps=self.eps,
            residual=residual,
            activation=self.activation,
            ranks=self._ranks(input),
            _caller=type(self).__name__,
        )
        self._update_running(moments)
        return y

    def _ranks(self, input: Tensor) -> Ranks | None:
        return super()._ranks(input) if self.synchronized else None

    def _move(self, batch: Moments) -> None:
        super()._move(batch)
        counter = self.num_batches_tracked
        if counter is not None and self.update_every == 1:
            counter.sub_((as_tensor(batch.count, batch.mean) == 0).to(counter))

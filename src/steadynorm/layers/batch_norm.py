"""Batch normalization for 2-d to 5-d input, a drop-in for torch's own (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

from __future__ import annotations

from torch import Tensor, nn

from steadynorm.functional import batch_norm, batch_norm_with_moments
from steadynorm.layers.base import BatchNormBase
from steadynorm.ops.observers import is_recomputing

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


_STORED = {"running_mean", "running_var", "num_batches_tracked"}


class _BatchNorm(BatchNormBase):
    """What the three dimensionalities share; see :class:`BatchNorm2d`."""

    def _train(self, input: Tensor, residual: Tensor | None) -> Tensor:
        buffers, momentum = self._buffers, self.momentum
        if buffers.keys() >= _STORED:  # by their dictionary: torch's search for an attribute takes a microsecond
            mean, var, batches = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
        else:  # one is parametrized, or was replaced by a plain tensor
            mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        weight, bias = self._parameters_for(mean)
        if not self._tracks():
            mean = var = None
        elif mean is not None and var is not None and (self._needs_moments() or is_recomputing()):
            y, moments = batch_norm_with_moments(
                input,
                weight,
                bias,
                self.eps,
                residual=residual,
                activation=self.activation,
                _caller=type(self).__name__,
            )
            self._update_running(moments)
            return y
        elif batches is not None:
            batches.add_(1)
        elif momentum is None:
            momentum = 0.0
        return batch_norm(
            input,
            mean,
            var,
            weight,
            bias,
            training=True,
            momentum=momentum,
            eps=self.eps,
            residual=residual,
            activation=self.activation,
            num_batches_tracked=batches,
            _caller=type(self).__name__,
        )


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """Batch normalization over (N, C) or (N, C, L) input; everything else as :class:`BatchNorm2d`."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Batch normalization over (N, C, H, W) input, with an optional residual and activation in the same pass.

        y = activation( (x − mean) / √(var + eps) · weight + bias + residual )

    In training, ``mean`` and ``var`` (biased: divided by count = N·H·W) are the batch's own, so that each
    sample's gradient depends on every sample, and the running estimates follow:

        running = (1 − momentum) · running + momentum · batch        (the variance's with the unbiased one)

    In evaluation, ``mean`` and ``var`` are the running estimates, and nothing changes. A model left in training
    mode gives results that depend on what else is in the batch.

    Takes the place of :class:`torch.nn.BatchNorm2d`: same arguments, errors and state keys, so checkpoints load
    either way. Statistics are computed and stored in float32 (float64 for float64) even in a half-precision module.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of the *new* batch, 0.1 forgets half in about 6.6 steps; None averages all batches equally.
        affine: whether there are a weight γ and a bias β, each of shape (C,).
        track_running_stats: whether there are running estimates; without them evaluation uses the batch's statistics.
        device: of parameters and buffers.
        dtype: of parameters, and of buffers where it is at least float32.
        bias: whether there is a β beside γ.
        activation: ``relu``, ``leaky_relu`` (slope 0.01), ``silu`` or None.
        nonfinite: what a batch with NaN or infinity does to the running estimates: ``propagate`` lets it in, and it
            stays, as torch does; ``skip`` keeps it out of them and of ``num_batches_tracked``; ``raise`` raises before
            they move (where compiled, ``torch._assert_async`` does).
        update_every: k; the running estimates move at every k-th forward, by the moments of the last k batches merged
            by count, with the weight of k steps, 1 − (1 − momentum)^k. A state dict does not hold a part of a window:
            the last batches, k − 1 at most, do not move the estimates after loading.
        running: how the estimates follow. ``exponential`` by ``momentum``; ``self_tuned`` by no number that one would
            have to choose: eleven momenta side by side, weighed by how well each predicts the next batch, with what
            is proven about it in ``statistics/README.md``. Its state is in the state dict (``_bank_...``); after
            loading statistics without it, it begins again with the next batch, and a warning says so.

    A forward within a backward, by which ``torch.utils.checkpoint`` computes again what it has not kept, leaves the
    running estimates alone in either mode; torch's own count such a batch twice.

    Raises:
        RuntimeError: a batch that is not finite, with ``nonfinite="raise"``.
        ValueError: input of the wrong rank, one value per channel in training, eps not positive in training,
            unknown activation.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Alg. 1 and 2; conventions of torch.nn.BatchNorm2d.

    >>> norm = BatchNorm2d(64, activation="relu")
    >>> norm(torch.randn(8, 64, 4, 4), residual=torch.randn(8, 64, 4, 4)).shape
    torch.Size([8, 64, 4, 4])
    """


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """Batch normalization over (N, C, D, H, W) input; everything else as :class:`BatchNorm2d`."""

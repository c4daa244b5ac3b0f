"""Batch normalization layers, drop-in replacements for torch's (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

from __future__ import annotations

from torch import Tensor, nn

from steadynorm.functional import batch_norm, batch_norm_with_moments
from steadynorm.layers.base import BatchNormBase
from steadynorm.ops.observers import is_recomputing

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


_STORED = {"running_mean", "running_var", "num_batches_tracked"}


class _BatchNorm(BatchNormBase):
    """Shared by the 1d, 2d and 3d layers; see :class:`BatchNorm2d`."""

    def _train(self, input: Tensor, residual: Tensor | None) -> Tensor:
        buffers, momentum = self._buffers, self.momentum
        if buffers.keys() >= _STORED:  # read the dictionary: torch's attribute lookup takes a microsecond
            mean, var, batches = buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"]
        else:  # a buffer is parametrized, or was replaced by a plain tensor
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
    """Batch normalization over (N, C) or (N, C, L) input.

    Arguments and behaviour are those of :class:`BatchNorm2d`.
    """


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    r"""Batch normalization over (N, C, H, W) input, with an optional fused residual and activation.

    $$
    y = \mathrm{activation}\left(\frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \mathrm{eps}}} \cdot \mathrm{weight} +
    \mathrm{bias} + \mathrm{residual}\right)
    $$

    In training, ``mean`` and ``var`` are the batch statistics of each channel, over N·H·W values; ``var`` is biased
    (divided by the count). Gradients flow through them, so each sample's output and gradient depend on the whole batch.
    The running statistics are updated as in torch, the variance with the unbiased one (divided by count − 1):

    $$
    \mathrm{running} \leftarrow (1 - \mathrm{momentum}) \cdot \mathrm{running} + \mathrm{momentum} \cdot \mathrm{batch}
    $$

    In evaluation, ``mean`` and ``var`` are the running statistics, and nothing is updated.

    A drop-in replacement for :class:`torch.nn.BatchNorm2d`: same arguments, errors and state keys, so checkpoints load
    either way. Input may be float16, bfloat16, float32 or float64; statistics are computed and stored in float32
    (float64 for float64 input), also in a half-precision module.

    Args:
        num_features: number of channels C.
        eps: added to the variance.
        momentum: weight of the *new* batch in the running statistics; 0.1 forgets half in about 6.6 steps. None
            averages all batches equally.
        affine: whether to learn a weight γ and a bias β, each of shape (C,).
        track_running_stats: whether to keep running statistics. Without them evaluation uses batch statistics.
        device: device of parameters and buffers.
        dtype: dtype of parameters, and of buffers if it is at least float32.
        bias: whether to learn β beside γ.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"silu"`` or None.
        nonfinite: what a batch with NaN or infinity does to the running statistics. ``"propagate"`` updates them, as
            torch does, and they stay non-finite. ``"skip"`` leaves them and ``num_batches_tracked`` unchanged.
            ``"raise"`` raises before the update (in compiled code through ``torch._assert_async``).
        update_every: number of training forwards k per update of the running statistics. Each update uses the moments
            of the last k batches merged by count, with the weight of k steps, 1 − (1 − momentum)^k. A state dict does
            not hold an incomplete window: after loading, up to k − 1 batches are missing from the running statistics.
        running: how the running statistics follow the batches. ``"exponential"`` uses ``momentum``. ``"self_tuned"``
            needs none: it weights eleven momenta by how well each predicts the next batch
            (:class:`steadynorm.statistics.SelfTuned`). Its state is in the state dict (``_bank_...``). Loading a
            checkpoint without it restarts it at the next batch, with a warning.

    Under ``torch.utils.checkpoint``, the recomputation in the backward does not update the running statistics again;
    torch's layer counts such a batch twice.

    Raises:
        RuntimeError: a batch is not finite, with ``nonfinite="raise"``.
        ValueError: input of the wrong rank; one value per channel in training; ``eps`` not positive in training; an
            unknown option.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Alg. 1 and 2; conventions of torch.nn.BatchNorm2d.

    >>> norm = BatchNorm2d(64, activation="relu")
    >>> norm(torch.randn(8, 64, 4, 4), residual=torch.randn(8, 64, 4, 4)).shape
    torch.Size([8, 64, 4, 4])
    """


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """Batch normalization over (N, C, D, H, W) input.

    Arguments and behaviour are those of :class:`BatchNorm2d`.
    """

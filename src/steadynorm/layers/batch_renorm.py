"""Batch renormalization layers (Ioffe 2017, arXiv 1702.03275)."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from steadynorm.functional import batch_renorm
from steadynorm.layers.base import BatchNormBase, Options
from steadynorm.ops.observers import is_transformed
from steadynorm.rules import renorm_bounds

__all__ = ["BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d"]


class _BatchRenorm(BatchNormBase):
    """Shared by the 1d, 2d and 3d layers; see :class:`BatchRenorm2d`."""

    _own_options = ("r_max", "d_max", "warmup_steps", "ramp_steps")
    _statistics_are = "running statistics to correct by"

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
        r_max: float = 3.0,
        d_max: float = 5.0,
        warmup_steps: int = 5_000,
        ramp_steps: int = 35_000,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        name = type(self).__name__
        if not (r_max >= 1 and d_max >= 0):
            raise ValueError(f"{name}: r_max must be at least 1 and d_max at least 0, got {r_max} and {d_max}.")
        if warmup_steps < 0 or ramp_steps < 0:
            raise ValueError(
                f"{name}: warmup_steps and ramp_steps count steps, at least 0, got {warmup_steps} and {ramp_steps}."
            )
        self.r_max, self.d_max, self.warmup_steps, self.ramp_steps = r_max, d_max, warmup_steps, ramp_steps
        self._before = None

    def _train(self, input: Tensor, residual: Tensor | None) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        mean, var, step = self.running_mean, self.running_var, self.num_batches_tracked
        mean, var, step = self._as_first_seen(mean, var, step)
        if not torch.compiler.is_compiling():
            self._check_values(input, step)
        schedule = {"warmup_steps": self.warmup_steps, "ramp_steps": self.ramp_steps}
        stays = torch.compiler.is_compiling() or is_transformed() or not step.is_cpu
        at = step if stays else int(step)  # a number avoids tensor operations
        bounds = renorm_bounds(at, **schedule, r_max=self.r_max, d_max=self.d_max)
        r_max, d_max = (torch.as_tensor(bound, dtype=mean.dtype) for bound in bounds)
        share = self._count_batch()
        y, moments = batch_renorm(
            input,
            mean,
            var,
            *self._parameters_for(mean),
            eps=self.eps,
            r_max=r_max,
            d_max=d_max,
            residual=residual,
            activation=self.activation,
            momentum=share or 0.0,
            _caller=type(self).__name__,
        )
        if share is None:
            self._update_running(moments)
        return y

    def _check_values(self, input: Tensor, step: Tensor) -> None:
        if input.numel() == self.num_features and int(step) < self.warmup_steps:
            raise ValueError(
                f"{type(self).__name__}: Expected more than 1 value per channel when training in the warm-up, which is "
                f"plain batch norm, got input {tuple(input.shape)} at step {int(step)} of {self.warmup_steps}. Use a "
                "larger batch or warmup_steps=0."
            )


class BatchRenorm1d(_BatchRenorm, nn.BatchNorm1d):
    """Batch renormalization over (N, C) or (N, C, L) input.

    Arguments and behaviour are those of :class:`BatchRenorm2d`.
    """


class BatchRenorm2d(_BatchRenorm, nn.BatchNorm2d):
    r"""Batch renormalization over (N, C, H, W) input, which trains with outputs close to those of evaluation.

    $$
    y = \mathrm{activation}\left(\left(\frac{x - \mu_B}{\sigma_B} \cdot r + d\right) \cdot \mathrm{weight} +
    \mathrm{bias} + \mathrm{residual}\right)
    $$

    $$
    r = \mathrm{clip}\left(\frac{\sigma_B}{\sigma}, \frac{1}{r_{max}}, r_{max}\right) \qquad d =
    \mathrm{clip}\left(\frac{\mu_B - \mu}{\sigma}, -d_{max}, d_{max}\right)
    $$

    $\mu$ and $\sigma$ are the running mean and standard deviation, $\mu_B$ and $\sigma_B$ those of the batch; eps is
    added to both variances. Where neither bound is reached, training outputs equal evaluation outputs. Gradients flow
    through the batch statistics as in batch norm; r and d are constants. This helps if batches are small or their
    samples are not independent.

    In training, for the first ``warmup_steps`` steps the bounds are 1 and 0, which is batch norm. Over the next
    ``ramp_steps`` steps they grow linearly to ``r_max`` and ``d_max``. The step is ``num_batches_tracked``, so a batch
    norm checkpoint continues at its own step and the state keys are batch norm's. After the warm-up one value per
    channel is enough; see :func:`steadynorm.statistics.update_running_` for its variance. Evaluation is that of batch
    norm.

    Takes the arguments of :class:`steadynorm.BatchNorm2d`, and by keyword:

    Args:
        r_max: final bound of r, at least 1.
        d_max: final bound of d, at least 0.
        warmup_steps: steps of plain batch norm.
        ramp_steps: steps from the warm-up to the final bounds; the paper takes 35,000 for r and 20,000 for d.

    Raises:
        ValueError: ``track_running_stats=False``; bounds or steps out of range; one value per channel during the
            warm-up; otherwise as :class:`steadynorm.BatchNorm2d`.

    Source: Ioffe 2017 (arXiv 1702.03275), Alg. 1; the running variance follows torch's convention.

    >>> norm = BatchRenorm2d(64, warmup_steps=100, ramp_steps=400, activation="relu")
    >>> norm(torch.randn(2, 64, 4, 4)).shape
    torch.Size([2, 64, 4, 4])
    """


class BatchRenorm3d(_BatchRenorm, nn.BatchNorm3d):
    """Batch renormalization over (N, C, D, H, W) input.

    Arguments and behaviour are those of :class:`BatchRenorm2d`.
    """

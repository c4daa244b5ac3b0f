"""Gated batch norm layers: a blend of batch norm and frozen batch norm."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from steadynorm.functional import gated_batch_norm
from steadynorm.layers.base import BatchNormBase, Options
from steadynorm.layers.state import normal_tensors
from steadynorm.layers.tracers import check_is_tensor
from steadynorm.ops.observers import is_recomputing, is_recorded
from steadynorm.statistics import Moments
from steadynorm.statistics.moments import statistics_dtype
from steadynorm.statistics.noise import update_noise_

__all__ = ["GatedBatchNorm1d", "GatedBatchNorm2d", "GatedBatchNorm3d"]

NOISE_MOMENTUM = 0.05


class _GatedBatchNorm(BatchNormBase):
    """Shared by the 1d, 2d and 3d layers; see :class:`GatedBatchNorm2d`."""

    _own_options = ("gate", "learn_confidence", "small_batch_probability")
    _can_be_scripted = False
    _statistics_are = "running statistics to blend with"

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
        gate: float | None = None,
        learn_confidence: bool = True,
        small_batch_probability: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        name = type(self).__name__
        for what, value in (("gate", gate), ("small_batch_probability", small_batch_probability)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}: {what} must be in [0, 1], got {value}.")
        assert self.running_mean is not None
        self.gate, self.small_batch_probability = gate, small_batch_probability
        # Shape (1,), not (): in compiled code torch 2.13 loses writes to a float64 tensor of shape ().
        with normal_tensors():
            self.register_buffer("noise", self.running_mean.new_ones(1))
            confidence = nn.Parameter(self.running_mean.new_zeros(3)) if learn_confidence and gate is None else None
        self.register_parameter("confidence", confidence)
        self.noise: Tensor
        self.confidence: nn.Parameter | None
        self._before = None

    @property
    def learn_confidence(self) -> bool:
        """Whether the confidence is a parameter."""
        return self.confidence is not None

    def _train(self, input: Tensor, residual: Tensor | None) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None
        stored = self._as_first_seen(self.running_mean, self.running_var, self.noise)
        follows_noise, share = self._tracks() and not is_recomputing(), self._count_batch()
        compiling = torch.compiler.is_compiling()
        y, moments = self._normalize(
            input,
            residual,
            stored,
            samples=self._draw_samples(input.shape[0]),
            momentum=share or 0.0,
            noise_momentum=NOISE_MOMENTUM if follows_noise and not compiling else 0.0,
        )
        if follows_noise and compiling and input.shape[0] > 1:  # update the buffer itself: stored may hold a copy
            update_noise_(self.noise, input, moments, momentum=NOISE_MOMENTUM)
        if share is None:
            self._update_running(moments)
        return y

    def _evaluate(self, input: Tensor, residual: Tensor | None) -> Tensor:
        check_is_tensor(self, input)
        assert self.running_mean is not None and self.running_var is not None
        return self._normalize(input, residual, (self.running_mean, self.running_var, self.noise))[0]

    def _normalize(
        self,
        input: Tensor,
        residual: Tensor | None,
        stored: tuple[Tensor, ...],
        **training: Any,  # noqa: ANN401 (arguments that only training passes)
    ) -> tuple[Tensor, Moments]:
        mean, var, noise = stored
        return gated_batch_norm(
            input,
            mean,
            var,
            *self._parameters_for(mean),
            eps=self.eps,
            noise=noise,
            confidence=self.confidence,
            gate=self.gate,
            residual=residual,
            activation=self.activation,
            **training,
            _caller=type(self).__name__,
        )

    def _draw_samples(self, available: int) -> int | Tensor | None:
        """Draw the number of samples to measure: with small_batch_probability, a power of two below the batch size."""
        if self.small_batch_probability == 0:
            return None
        few = torch.rand(()) < self.small_batch_probability
        below = (2 ** torch.arange(63) < available).sum()
        some = 2 ** (torch.rand(()) * below).long()
        if torch.compiler.is_compiling() or is_recorded():  # one graph serves every draw
            return torch.where(few, some, available)
        return int(some) if few and available > 1 else None

    def _new_extra(self, like: Tensor) -> dict[str, dict[str, Tensor]]:
        wide = statistics_dtype(like.dtype)
        gate = {"noise": like.new_ones(1, dtype=wide)}
        if self.confidence is not None:
            gate["confidence"] = like.new_zeros(3, dtype=wide)
        return super()._new_extra(like) | {"gate": gate}

    @torch.no_grad()
    def reset_running_stats(self) -> None:
        """Reset the running statistics to mean 0 and variance 1, the noise to 1 and the confidence to 0."""
        super().reset_running_stats()
        if "noise" in self._buffers:  # missing while torch's constructor runs
            self.noise.fill_(1)
            if self.confidence is not None:
                nn.init.zeros_(self.confidence)


class GatedBatchNorm1d(_GatedBatchNorm):
    """Gated batch norm over (N, C) or (N, C, L) input.

    Arguments and behaviour are those of :class:`GatedBatchNorm2d`.
    """

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class GatedBatchNorm2d(_GatedBatchNorm):
    r"""Gated batch norm over (N, C, H, W) input, which weighs batch statistics by how reliable they are.

    $$
    y = \mathrm{activation}\left(\frac{x - m}{\sqrt{v + \mathrm{eps}}} \cdot \mathrm{weight} + \mathrm{bias} +
    \mathrm{residual}\right)
    $$

    $$
    m = (1 - g)\,\mu + g\,\mu_B \qquad v = (1 - g)\,\sigma^2 + g\,\sigma_B^2 + g\,(1 - g)\,(\mu_B - \mu)^2
    $$

    $\mu$ and $\sigma^2$ are the running statistics, $\mu_B$ and $\sigma_B^2$ the batch statistics. The gate $g$ is one
    number per layer and batch:

    $$
    D = \mathrm{mean}_C\,\frac{(\mu_B - \mu)^2}{\sigma^2 + \mathrm{eps}} \qquad s = \frac{\mathrm{noise}}{N} \qquad
    g = \frac{\mathrm{odds}}{1 + \mathrm{odds}}
    $$

    $$
    \mathrm{odds} = \max\left(\frac{D}{s} - 1, 0\right) \exp\left(c_0 + c_1 \ln\frac{D}{s} - c_2 \ln s\right)
    $$

    ``noise`` is the variance of one sample's mean relative to the variance of its values. It is measured in training,
    so neighbouring pixels do not count as independent values. At zero confidence (c = 0, the initial value) g is
    drift² / (drift² + s), which minimizes the expected squared error of the blended mean. A few samples that agree with
    the running statistics are normalized by the running statistics; many samples that disagree, by the batch's.

    Training and evaluation use the same equations. In training the running statistics are updated as in batch norm, and
    gradients flow through the batch statistics in proportion to the gate; in evaluation nothing is updated. One sample
    and one value per channel are enough in both modes. The layer is not a subclass of torch's batch norm, because its
    evaluation differs.

    Noise and confidence are additional keys of the state dict. A batch norm checkpoint loads with a warning that the
    gate restarts; :func:`steadynorm.layers.batch_norm_state` converts the other way.

    Takes the arguments of :class:`steadynorm.BatchNorm2d`, and by keyword:

    Args:
        gate: fixed value of g in [0, 1]: 0 is frozen batch norm, 1 is batch norm. None computes it.
        learn_confidence: whether to learn c; otherwise it stays 0.
        small_batch_probability: probability, in training, that only the first 1, 2, 4, ... samples give the batch
            statistics, so that network and confidence learn from small batches too.

    Raises:
        ValueError: ``track_running_stats=False``; a number outside [0, 1]; otherwise as
            :class:`steadynorm.BatchNorm2d`.

    Source: ours; the prior is the positive-part shrinkage of James & Stein 1961, with C dimensions.

    >>> norm = GatedBatchNorm2d(64, activation="relu").eval()
    >>> norm(torch.randn(1, 64, 1, 1)).shape
    torch.Size([1, 64, 1, 1])
    """

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class GatedBatchNorm3d(_GatedBatchNorm):
    """Gated batch norm over (N, C, D, H, W) input.

    Arguments and behaviour are those of :class:`GatedBatchNorm2d`.
    """

    _check_input_dim = nn.BatchNorm3d._check_input_dim

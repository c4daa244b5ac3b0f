"""Gated batch norm for 2-d to 5-d input: between batch norm and a frozen affine map, as far as a batch is believed."""

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
    """What the three dimensionalities share; see :class:`GatedBatchNorm2d`."""

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
        # Not of shape (): compiled, torch 2.13 forgets what is written into a float64 tensor of that shape.
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
        if follows_noise and compiling and input.shape[0] > 1:  # of which stored may be a copy
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
        **training: Any,  # noqa: ANN401 (what only training says to the function)
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
        """Draw how many samples are to stand for this batch: now and then a power of two below all."""
        if self.small_batch_probability == 0:
            return None
        few = torch.rand(()) < self.small_batch_probability
        below = (2 ** torch.arange(63) < available).sum()
        some = 2 ** (torch.rand(()) * below).long()
        if torch.compiler.is_compiling() or is_recorded():  # where the same is computed for every draw
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
        """Set the statistics to mean 0, variance 1 and noise 1, and the confidence to 0."""
        super().reset_running_stats()
        if "noise" in self._buffers:  # not yet so while torch's constructor runs
            self.noise.fill_(1)
            if self.confidence is not None:
                nn.init.zeros_(self.confidence)


class GatedBatchNorm1d(_GatedBatchNorm):
    """Gated batch norm over (N, C) or (N, C, L) input; everything else as :class:`GatedBatchNorm2d`."""

    _check_input_dim = nn.BatchNorm1d._check_input_dim


class GatedBatchNorm2d(_GatedBatchNorm):
    """Gated batch norm over (N, C, H, W) input: by the batch's moments as far as they are to be believed.

        y = activation( (x − m) / √(v + eps) · weight + bias + residual )
        m = (1 − g)·μ + g·μ_B        v = (1 − g)·σ² + g·σ_B² + g·(1 − g)·(μ_B − μ)²

    μ and σ² are the running estimates, μ_B and σ_B² the batch's, and g is one number a layer and batch:

        distance² = meanᶜ( (μ_B − μ)²/(σ² + eps) )        noise = noise of one sample / N
        odds = max(distance²/noise − 1, 0)·exp(c₀ + c₁·ln(distance²/noise) + c₂·ln(1/noise))        g = odds/(1 + odds)

    Without confidence (c = 0, where it begins) g is drift²/(drift² + noise): the blend that errs least on average, if
    the stored mean is a drift off and the batch's mean a noise. ``noise``, the variance of a sample's mean beside that
    of its values, is measured in training, so that neighbouring pixels do not count as independent values. A few
    samples that look like the stored statistics are normalized by those, many that do not by their own.

    The same holds in training, where the running estimates follow as batch norm's do and the gradient flows through
    the batch's moments as far as they take part, and in evaluation, where nothing moves. One sample, and one value per
    channel, train and evaluate. It is no instance of torch's batch norm, because its evaluation is another.

    Noise and confidence are keys of the state dict beside batch norm's five. A checkpoint of plain batch norm loads
    too, warning that the gate begins again; into plain batch norm see :func:`steadynorm.layers.batch_norm_state`.

    Takes the arguments of :class:`steadynorm.BatchNorm2d`, and keyword-only:

    Args:
        gate: a number in [0, 1] that g is to be: 0 is frozen batch norm, 1 batch norm. None computes it.
        learn_confidence: whether c is a parameter; it stays 0 otherwise.
        small_batch_probability: how often, in training, the first 1, 2, 4, ... samples are to stand for the batch, so
            that network and confidence meet small ones.

    Raises:
        ValueError: no running statistics; a number outside [0, 1].

    Source: the prior is the positive-part shrinkage of James & Stein 1961, with C dimensions.

    >>> norm = GatedBatchNorm2d(64, activation="relu").eval()
    >>> norm(torch.randn(1, 64, 1, 1)).shape
    torch.Size([1, 64, 1, 1])
    """

    _check_input_dim = nn.BatchNorm2d._check_input_dim


class GatedBatchNorm3d(_GatedBatchNorm):
    """Gated batch norm over (N, C, D, H, W) input; everything else as :class:`GatedBatchNorm2d`."""

    _check_input_dim = nn.BatchNorm3d._check_input_dim

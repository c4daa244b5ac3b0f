"""Batch normalization for 2-d to 5-d input, a drop-in for torch's own (Ioffe & Szegedy 2015, arXiv 1502.03167)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from steadynorm.functional import Activation, batch_norm, check_activation
from steadynorm.statistics.moments import statistics_dtype

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]

_TORCH_HAS_BIAS = "bias" in inspect.signature(nn.BatchNorm2d.__init__).parameters  # since 2.13


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """What the three dimensionalities share; see :class:`BatchNorm2d`."""

    __constants__ = [*nn.BatchNorm2d.__constants__, "activation"]  # noqa: RUF012 (torch reads a plain list)

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
        bias: bool = True,
        activation: Activation | None = None,
    ) -> None:
        check_activation(activation)
        with_bias: dict[str, Any] = {"bias": bias} if _TORCH_HAS_BIAS else {}
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **with_bias
        )
        if not bias:
            self.register_parameter("bias", None)
        self.activation = activation
        self._keep_statistics_wide({})

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize, add, activate.

        Args:
            input: shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), as the class says.
            residual: shape of input, added before the activation; None adds nothing.

        Returns:
            shape, dtype and memory format of input.
        """
        if isinstance(input, Tensor):  # not so while torch.fx traces: a proxy has no rank
            self._check_input_dim(input)  # type: ignore[no-untyped-call]
        mean, var, batches = self.running_mean, self.running_var, self.num_batches_tracked
        training, momentum = self.training or (mean is None and var is None), self.momentum
        if self.training and not self.track_running_stats:
            mean = var = None
        elif self.training and batches is not None:
            batches.add_(1)
        elif self.training and momentum is None:
            momentum = 0.0
        return batch_norm(
            input,
            mean,
            var,
            *self._parameters_for(mean),
            training=training,
            momentum=momentum,
            eps=self.eps,
            residual=residual,
            activation=self.activation,
            num_batches_tracked=batches,
        )

    def reset_parameters(self) -> None:
        """Set the statistics to mean 0 and variance 1, weight to 1 and bias to 0."""
        self.reset_running_stats()
        if self.affine:
            nn.init.ones_(self.weight)
            if self.bias is not None:
                nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """List torch's arguments, then ours."""
        return f"{super().extra_repr()}, activation={self.activation!r}"  # type: ignore[no-untyped-call]

    def _parameters_for(self, statistics: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Give weight and bias in a dtype that torch's evaluation accepts beside float32 statistics."""
        weight, bias = self.weight, self.bias
        stored = self._parameters.get("weight", weight)  # torch.fx hands out proxies for self.weight, without dtype
        if statistics is None or stored is None or stored.dtype == statistics.dtype:
            return weight, bias
        return weight.to(statistics.dtype), None if bias is None else bias.to(statistics.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert as torch does, except that no conversion narrows the statistics below float32."""
        before = {name: getattr(self, name) for name in ("running_mean", "running_var")}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._keep_statistics_wide(before)
        return self

    def _keep_statistics_wide(self, before: dict[str, Tensor | None]) -> None:
        for name in ("running_mean", "running_var"):
            now: Tensor | None = getattr(self, name)
            if now is None or now.dtype == statistics_dtype(now.dtype):
                continue
            source = before.get(name)
            source = now if source is None or source.is_meta else source
            setattr(self, name, source.to(device=now.device, dtype=statistics_dtype(now.dtype)))


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

    Raises:
        ValueError: input of the wrong rank, one value per channel in training, eps not positive in training,
            unknown activation.

    Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), Alg. 1 and 2; conventions of torch.nn.BatchNorm2d.

    >>> norm = BatchNorm2d(64, activation="relu")
    >>> norm(torch.randn(8, 64, 4, 4), residual=torch.randn(8, 64, 4, 4)).shape
    torch.Size([8, 64, 4, 4])
    """


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """Batch normalization over (N, C, D, H, W) input; everything else as :class:`BatchNorm2d`."""

"""Batch normalization: center and scale by the batch's own moments (Ioffe & Szegedy 2015, Alg. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from steadynorm.ops.dispatch import compiled_rule
from steadynorm.rules.rule import CenterScaleShift
from steadynorm.statistics import Moments

__all__ = ["BatchNormRule"]


@dataclass(frozen=True)
class BatchNormRule:
    """The rule of batch normalization in training.

        center = mean        scale = weight / √(var + eps)        shift = bias

    ``weight`` None counts as 1 and ``bias`` None as 0.
    """

    eps: float
    reads_running: ClassVar = False
    learns: ClassVar = False

    def compiled(self, *_: Tensor | None) -> Any:  # noqa: ANN401 (as the protocol has it)
        """Return the form that the kernels take."""
        return compiled_rule("batch_norm").BatchNorm(float(self.eps))

    def forward(self, moments: Moments, *parameters: Tensor | None) -> CenterScaleShift:
        """Return center, scale and shift; ``parameters`` are weight and bias."""
        weight, bias = parameters
        rstd = torch.rsqrt(moments.var + self.eps)
        scale = rstd if weight is None else rstd * weight
        shift = torch.zeros_like(rstd) if bias is None else bias.to(rstd.dtype)
        return CenterScaleShift(moments.mean, scale, shift)

    def backward(
        self, gradient: CenterScaleShift, moments: Moments, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Differentiate the forward by hand.

        d_mean = d_center        d_var = −½·d_scale·weight·rstd³        d_weight = d_scale·rstd        d_bias = d_shift
        """
        weight, bias = parameters
        rstd = torch.rsqrt(moments.var + self.eps)
        d_rstd = gradient.scale if weight is None else gradient.scale * weight
        d_weight = None if weight is None else (gradient.scale * rstd).to(weight.dtype)
        d_bias = None if bias is None else gradient.shift.to(bias.dtype)
        return gradient.center, -0.5 * d_rstd * rstd**3, (d_weight, d_bias)

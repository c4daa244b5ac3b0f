"""Batch renormalization: a batch's own moments, corrected towards the running ones (Ioffe 2017, arXiv 1702.03275)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from steadynorm.ops.dispatch import compiled_rule
from steadynorm.rules.rule import CenterScaleShift
from steadynorm.statistics import Moments

__all__ = ["BatchRenormRule", "renorm_bounds", "renorm_corrections"]


def renorm_bounds(
    step: int | Tensor, *, warmup_steps: int, ramp_steps: int, r_max: float, d_max: float
) -> tuple[float | Tensor, float | Tensor]:
    """Return the bounds of r and d at a step: those of batch norm at first, then a linear ramp to the final values.

        progress = clip((step − warmup_steps) / ramp_steps, 0, 1)
        r = 1 + progress·(r_max − 1)        d = progress·d_max

    Args:
        step: updates made before this one. A tensor gives float32 tensors, without a synchronization with the host.
        warmup_steps: steps of plain batch norm.
        ramp_steps: steps from there to the final values; 0 jumps.
        r_max: at least 1.
        d_max: at least 0.

    Source: Ioffe 2017, section 4 (5,000 steps of batch norm, r to 3 at step 40,000, d to 5 at step 25,000).
    """
    late = step - warmup_steps
    progress: float | Tensor
    if isinstance(late, Tensor):
        progress = (late.float() / ramp_steps).clamp(0, 1) if ramp_steps else (late >= 0).float()
    else:
        progress = min(max(late / ramp_steps, 0.0), 1.0) if ramp_steps else float(late >= 0)
    return 1 + progress * (r_max - 1), progress * d_max


def renorm_corrections(
    batch: Moments, running: Moments, *, eps: float, r_max: Tensor, d_max: Tensor
) -> tuple[Tensor, Tensor]:
    """Return r and d, which correct a batch's normalization towards the running statistics; shape (C,) each.

    r = clip(√(var + eps) / σ, 1/r_max, r_max)        d = clip((mean − running_mean) / σ, −d_max, d_max)
    σ = √(running_var + eps)
    """
    running_rstd = torch.rsqrt(running.var + eps)
    r = (batch.var + eps).sqrt().mul_(running_rstd).clamp(1 / r_max, r_max)
    return r, (batch.mean - running.mean).mul_(running_rstd).clamp(-d_max, d_max)


@dataclass(frozen=True)
class BatchRenormRule:
    """The rule of batch renormalization in training; r and d are constants to the gradient.

        σ_B = √(var + eps)        σ = √(running_var + eps)
        r = clip(σ_B / σ, 1/r_max, r_max)        d = clip((mean − running_mean) / σ, −d_max, d_max)
        center = mean        scale = weight·r / σ_B        shift = bias + weight·d

    The parameters are weight, bias (None counts as 1 and 0), running_mean, running_var, r_max and d_max.
    """

    eps: float
    reads_running: ClassVar = True
    learns: ClassVar = False

    def compiled(self, *own: Tensor | None) -> Any:  # noqa: ANN401 (as the protocol has it)
        """Return the form that the kernels take; ``own`` are r_max and d_max."""
        r_max, d_max = own
        assert r_max is not None and d_max is not None
        return compiled_rule("batch_renorm").BatchRenorm(float(self.eps), float(r_max), float(d_max))

    def forward(self, moments: Moments, *parameters: Tensor | None) -> CenterScaleShift:
        """Return center, scale and shift."""
        weight, bias, *stored = parameters
        rstd = torch.rsqrt(moments.var + self.eps)
        r, d = self._corrections(moments, *stored)
        scale, shift = rstd * r, d
        if weight is not None:
            scale, shift = scale * weight, shift * weight
        return CenterScaleShift(moments.mean, scale, shift if bias is None else shift + bias)

    def backward(
        self, gradient: CenterScaleShift, moments: Moments, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Differentiate the forward by hand.

        d_mean = d_center        d_var = −½·d_scale·weight·r·rstd³
        d_weight = d_scale·r·rstd + d_shift·d        d_bias = d_shift
        """
        weight, bias, *stored = parameters
        rstd = torch.rsqrt(moments.var + self.eps)
        r, d = self._corrections(moments, *stored)
        d_scale = gradient.scale * r
        d_weight = None if weight is None else (d_scale * rstd + gradient.shift * d).to(weight.dtype)
        d_bias = None if bias is None else gradient.shift.to(bias.dtype)
        d_rstd = d_scale if weight is None else d_scale * weight
        return gradient.center, -0.5 * d_rstd * rstd**3, (d_weight, d_bias, None, None, None, None)

    def _corrections(self, moments: Moments, *stored: Tensor | None) -> tuple[Tensor, Tensor]:
        running_mean, running_var, r_max, d_max = stored
        assert running_mean is not None and running_var is not None and r_max is not None and d_max is not None
        batch = Moments(mean=moments.mean.detach(), var=moments.var.detach(), count=moments.count)
        running = Moments(mean=running_mean, var=running_var, count=moments.count)
        return renorm_corrections(batch, running, eps=self.eps, r_max=r_max, d_max=d_max)

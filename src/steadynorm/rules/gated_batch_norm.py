"""Gated batch norm: moments between the stored ones and the batch's, weighted by the evidence of drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from steadynorm.ops.dispatch import compiled_rule
from steadynorm.rules.rule import CenterScaleShift
from steadynorm.statistics import Moments
from steadynorm.statistics.noise import standardized_distance

__all__ = ["GatedBatchNormRule", "gate"]


def gate(distance: Tensor, noise: Tensor, confidence: Tensor | None) -> Tensor:
    """Compute the weight of the batch's moments, between 0 and 1.

        drift² = max(distance² − noise, 0)        odds = drift²/noise · exp(u)        g = odds / (1 + odds)
        u = c₀ + c₁·ln(distance²/noise) + c₂·ln(1/noise), within ±80

    With u = 0 this is drift²/(drift² + noise), the weight that errs least on average between a stored mean that is
    ``drift`` off and a batch mean of variance ``noise``, with drift² estimated from the batch at hand: the
    positive-part shrinkage of James & Stein 1961, with the channels of a layer as its dimensions.

    Args:
        distance: distance² between batch and stored mean, see :func:`standardized_distance`; one value.
        noise: expected distance² without drift, positive; one value. Its inverse is the effective count.
        confidence: c, shape (3,); None counts as zeros.

    Returns:
        a tensor of one value; no gradient flows to distance and noise.
    """
    distance, noise = distance.detach(), noise.detach()
    ratio = distance / noise
    odds = (ratio - 1).clamp(min=0)
    if confidence is not None:
        # With dynamic=True a global number would become a graph input, which the compiler loses at the second layer.
        u = (confidence.to(odds.dtype) @ _evidence(ratio, noise)).clamp(-80.0, 80.0)  # float32 holds exp(80)
        odds = odds * torch.exp(u)
    odds = odds.clamp(max=torch.finfo(odds.dtype).max)
    return odds / (1 + odds)


def _evidence(ratio: Tensor, noise: Tensor) -> Tensor:
    """Return the inputs of the confidence: 1, ln(distance²/noise), ln(effective count); shape (3,)."""
    return torch.stack((torch.ones_like(ratio), ratio.clamp(min=1e-6).log(), -noise.log()))


@dataclass(frozen=True)
class GatedBatchNormRule:
    """The rule of gated batch norm, in training and in evaluation.

        g = gate(distance²(batch, stored), noise, confidence), or as given
        center = (1 − g)·stored_mean + g·mean        δ = mean − stored_mean
        v = (1 − g)·stored_var + g·var + g·(1 − g)·δ²
        scale = weight / √(v + eps)        shift = bias

    The second moments are those of the mixture: g = 0 is the affine map of the stored statistics, g = 1 batch norm.
    The gradient with respect to the batch's moments takes g as a constant.

    The parameters are weight, bias (None counts as 1 and 0), stored_mean, stored_var, noise and confidence.
    """

    eps: float
    fixed_gate: float | None = None
    reads_running: ClassVar = True

    @property
    def learns(self) -> bool:
        """Whether the confidence has a gradient."""
        return self.fixed_gate is None

    def compiled(self, *own: Tensor | None) -> Any:  # noqa: ANN401 (as the protocol has it)
        """Return the form that the kernels take; ``own`` are noise and confidence."""
        noise, confidence = own
        forms = compiled_rule("gated_batch_norm")
        if self.fixed_gate is not None:
            return forms.GatedByConstant(float(self.eps), float(self.fixed_gate))
        assert noise is not None
        weights = (0.0, 0.0, 0.0) if confidence is None else confidence.tolist()
        return forms.Gated(float(self.eps), float(noise), *weights)

    def forward(self, moments: Moments, *parameters: Tensor | None) -> CenterScaleShift:
        """Return center, scale and shift."""
        weight, bias, *gating = parameters
        g, stored = self._gate(moments, *gating)
        mixed = stored.blend(moments, weight=g)
        rstd = torch.rsqrt(mixed.var + self.eps)
        scale = rstd if weight is None else rstd * weight
        return CenterScaleShift(mixed.mean, scale, torch.zeros_like(rstd) if bias is None else bias.to(rstd.dtype))

    def backward(
        self, gradient: CenterScaleShift, moments: Moments, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Differentiate the forward by hand.

        d_v = −½·d_scale·weight·rstd³        d_mean = g·d_center + 2·g·(1 − g)·δ·d_v        d_var = g·d_v
        d_g = Σ( d_center·δ + d_v·(var − stored_var + (1 − 2·g)·δ²) )        d_confidence = d_g·g·(1 − g)·evidence
        d_weight = d_scale·rstd        d_bias = d_shift
        """
        weight, bias, *gating = parameters
        noise, confidence = gating[2:]
        g, stored = self._gate(moments, *gating)
        rstd = torch.rsqrt(stored.blend(moments, weight=g).var + self.eps)
        d_rstd = gradient.scale if weight is None else gradient.scale * weight
        d_v = -0.5 * d_rstd * rstd**3
        delta = moments.mean - stored.mean
        d_confidence = None
        if confidence is not None and self.fixed_gate is None and noise is not None:
            change = moments.var - stored.var + (1 - 2 * g) * delta.square()
            d_g = (gradient.center * delta + d_v * change).sum()
            ratio = standardized_distance(moments, stored, eps=self.eps) / noise
            d_confidence = (d_g * g * (1 - g) * _evidence(ratio, noise)).to(confidence.dtype)
        d_weight = None if weight is None else (gradient.scale * rstd).to(weight.dtype)
        d_bias = None if bias is None else gradient.shift.to(bias.dtype)
        d_mean = g * gradient.center + 2 * g * (1 - g) * delta * d_v
        return d_mean, g * d_v, (d_weight, d_bias, None, None, None, d_confidence)

    def _gate(self, moments: Moments, *gating: Tensor | None) -> tuple[Tensor, Moments]:
        mean, var, noise, confidence = gating
        assert mean is not None and var is not None and noise is not None
        stored = Moments(mean=mean, var=var, count=moments.count)
        if self.fixed_gate is not None:
            return mean.new_tensor(self.fixed_gate), stored
        return gate(standardized_distance(moments, stored, eps=self.eps), noise, confidence), stored

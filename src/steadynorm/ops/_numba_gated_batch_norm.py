"""The rule of ``rules/gated_batch_norm.py``, compiled: with a constant gate, and with a computed one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from steadynorm.ops._numba_rules import ChannelMoments, Form, define, mixture
from steadynorm.ops._numba_types import Array

__all__ = ["Gated", "GatedByConstant"]

FARTHEST = 80.0
"""Largest exponent by which confidence scales the odds, as in ``rules/gated_batch_norm.py``."""


class GatedByConstant(NamedTuple):
    """Gated batch norm with a constant gate: moments of a mixture of the stored distribution and the batch's."""

    eps: float
    gate: float


class Gated(NamedTuple):
    """Gated batch norm with a gate computed from the batch."""

    eps: float
    noise: float
    constant: float  # the three values of the confidence
    by_ratio: float
    by_count: float


def _affine_of(
    rule: GatedByConstant | Gated, moments: ChannelMoments, gate: float, channel: int
) -> tuple[float, float, float]:
    """Center and 1/√(var + eps) of the mixture, offset = 0."""
    center, var = mixture(
        float(moments.stored_mean[channel]),
        float(moments.stored_var[channel]),
        float(moments.mean[channel]),
        float(moments.var[channel]),
        gate,
    )
    return center, 1.0 / math.sqrt(var + rule.eps), 0.0


def _moment_gradients(
    rule: GatedByConstant | Gated,
    moments: ChannelMoments,
    gate: float,
    channel: int,
    factor: float,
    d_center: float,
    d_factor: float,
) -> tuple[float, float, float]:
    """Differentiate the mixture."""
    d_var = -0.5 * d_factor * factor * factor * factor
    apart = float(moments.mean[channel]) - float(moments.stored_mean[channel])
    change = float(moments.var[channel]) - float(moments.stored_var[channel]) + (1.0 - 2.0 * gate) * apart * apart
    d_mean = gate * d_center + 2.0 * gate * (1.0 - gate) * apart * d_var
    return d_mean, gate * d_var, d_center * apart + d_var * change


def _given_gate(rule: GatedByConstant, moments: ChannelMoments) -> tuple[float, float]:
    return rule.gate, 0.0


def _computed_gate(rule: Gated, moments: ChannelMoments) -> tuple[float, float]:
    """Compute ``rules.gated_batch_norm.gate`` and distance² / noise."""
    distance, fine = 0.0, 0
    for channel in range(moments.mean.size):
        apart = float(moments.mean[channel]) - float(moments.stored_mean[channel])
        squared = apart * apart / (moments.stored_var[channel] + rule.eps)
        if np.isfinite(squared):
            distance += squared
            fine += 1
    ratio = distance / max(fine, 1) / rule.noise
    exponent = rule.constant + rule.by_ratio * math.log(max(ratio, 1e-6)) - rule.by_count * math.log(rule.noise)
    odds = max(ratio - 1.0, 0.0) * math.exp(min(max(exponent, -FARTHEST), FARTHEST))
    return odds / (1.0 + odds), ratio


def _write_confidence_gradient(rule: Gated, gate: float, ratio: float, d_gate: float, target: Array) -> None:
    """d_confidence = d_gate·gate·(1 − gate)·(1, ln ratio, −ln noise)."""
    if target.size > 0:
        slope = d_gate * gate * (1.0 - gate)
        target[0] = slope
        target[1] = slope * math.log(max(ratio, 1e-6))
        target[2] = -slope * math.log(rule.noise)


_mixing = Form(reads_running=True, affine_of=_affine_of, gate_of=_given_gate, moment_gradients=_moment_gradients)
define(GatedByConstant, _mixing)
define(Gated, replace(_mixing, gate_of=_computed_gate, write_confidence_gradient=_write_confidence_gradient))

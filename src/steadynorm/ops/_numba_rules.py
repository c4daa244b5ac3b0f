"""Rules as compiled code: numbers per channel, in float64, between the kernels of one call.

They are those of ``steadynorm.rules``, told by type as an activation is. A rule turns a channel's moments, the batch's
and the stored ones, into (x − center)·factor·weight + offset·weight + bias; and gradients with respect to that into
gradients with respect to the batch's mean and variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from steadynorm.ops._numba_types import Array, Type, choose_inline, inline

__all__ = [
    "BatchNorm",
    "Blend",
    "Gated",
    "Known",
    "Renorm",
    "Rule",
    "gate_gradient",
    "kept_rows",
    "stored_rows",
    "terms",
    "to_moments",
    "weigh",
]

FARTHEST = 80.0
"""Largest exponent by which confidence moves the odds, as in ``rules/gated_batch_norm.py``."""


class BatchNorm(NamedTuple):
    """Batch norm, by the batch's moments."""

    eps: float


class Renorm(NamedTuple):
    """Batch renorm: corrected towards the stored moments within bounds."""

    eps: float
    r_max: float
    d_max: float


class Blend(NamedTuple):
    """Moments of a mixture of the stored distribution and the batch's, of a given weight."""

    eps: float
    gate: float


class Gated(NamedTuple):
    """Likewise, the weight being computed."""

    eps: float
    noise: float
    constant: float  # the three of the confidence
    by_ratio: float
    by_count: float


Rule = BatchNorm | Renorm | Blend | Gated


class Known(NamedTuple):
    """Moments per channel, float32."""

    mean: Array
    var: Array
    stored_mean: Array  # empty, or without meaning, where the rule does not look at it
    stored_var: Array  # likewise


def stored_rows(rule: Rule) -> int:
    """Count the rows of numbers per channel that are kept because the rule looks at the running estimates."""
    return 0 if isinstance(rule, BatchNorm) else 2


@choose_inline(stored_rows)
def _stored_rows_of(rule: Type) -> Callable[..., int]:
    rows = 0 if rule.instance_class is BatchNorm else 2
    return lambda rule: rows


def kept_rows(rule: Rule, chunks: int) -> int:
    """Count the rows that a call keeps for its gradient: moments of the batch, stored ones, each chunk's if several."""
    return 2 + stored_rows(rule) + (0 if chunks == 1 else 2 * chunks)


@choose_inline(kept_rows)
def _kept_rows_of(rule: Type, chunks: Type) -> Callable[..., int]:
    return lambda rule, chunks: 2 + stored_rows(rule) + (0 if chunks == 1 else 2 * chunks)


def weigh(rule: Rule, known: Known) -> tuple[float, float]:
    """Give the weight of the batch in the mixture, and what it was computed from: distance² / noise."""
    raise NotImplementedError


@choose_inline(weigh)
def _weigh_by(rule: Type, known: Type) -> Callable[..., tuple[float, float]]:
    if rule.instance_class is Gated:
        return lambda rule, known: _gate(rule, known)
    if rule.instance_class is Blend:
        return lambda rule, known: (rule.gate, 0.0)
    return lambda rule, known: (1.0, 0.0)


@inline
def _gate(rule: Gated, known: Known) -> tuple[float, float]:
    distance, fine = 0.0, 0
    for channel in range(known.mean.size):
        apart = float(known.mean[channel]) - float(known.stored_mean[channel])
        squared = apart * apart / (known.stored_var[channel] + rule.eps)
        if np.isfinite(squared):
            distance += squared
            fine += 1
    ratio = distance / max(fine, 1) / rule.noise
    exponent = rule.constant + rule.by_ratio * math.log(max(ratio, 1e-6)) - rule.by_count * math.log(rule.noise)
    odds = max(ratio - 1.0, 0.0) * math.exp(min(max(exponent, -FARTHEST), FARTHEST))
    return odds / (1.0 + odds), ratio


def terms(rule: Rule, known: Known, gate: float, channel: int) -> tuple[float, float, float]:
    """Give a channel's center, factor and offset."""
    raise NotImplementedError


@choose_inline(terms)
def _terms_of(rule: Type, known: Type, gate: Type, channel: Type) -> Callable[..., tuple[float, float, float]]:
    if rule.instance_class is BatchNorm:
        return lambda rule, known, gate, channel: (
            known.mean[channel],
            1.0 / math.sqrt(known.var[channel] + rule.eps),
            0.0,
        )
    if rule.instance_class is Renorm:
        return lambda rule, known, gate, channel: _renorm_terms(rule, known, channel)
    return lambda rule, known, gate, channel: _blend_terms(rule, known, gate, channel)


@inline
def _clip(value: float, low: float, high: float) -> float:
    """NaN stays NaN."""
    return low if value < low else high if value > high else value


@inline
def _renorm_terms(rule: Renorm, known: Known, channel: int) -> tuple[float, float, float]:
    std, stored_std = math.sqrt(known.var[channel] + rule.eps), math.sqrt(known.stored_var[channel] + rule.eps)
    r = _clip(std / stored_std, 1.0 / rule.r_max, rule.r_max)
    apart = float(known.mean[channel]) - float(known.stored_mean[channel])
    return known.mean[channel], r / std, _clip(apart / stored_std, -rule.d_max, rule.d_max)


@inline
def _blend_terms(rule: Blend | Gated, known: Known, gate: float, channel: int) -> tuple[float, float, float]:
    rest, apart = 1.0 - gate, float(known.mean[channel]) - float(known.stored_mean[channel])
    center = rest * known.stored_mean[channel] + gate * known.mean[channel]
    var = rest * known.stored_var[channel] + gate * known.var[channel] + gate * rest * apart * apart
    return center, 1.0 / math.sqrt(var + rule.eps), 0.0


def to_moments(
    rule: Rule, known: Known, gate: float, channel: int, factor: float, d_center: float, d_factor: float
) -> tuple[float, float, float]:
    """Give the gradients with respect to mean, variance and gate.

    Args:
        factor: from :func:`terms`.
        d_center: gradient with respect to the center.
        d_factor: gradient with respect to the factor.
    """
    raise NotImplementedError


@choose_inline(to_moments)
def _to_moments_of(
    rule: Type, known: Type, gate: Type, channel: Type, factor: Type, d_center: Type, d_factor: Type
) -> Callable[..., tuple[float, float, float]]:
    if rule.instance_class in (BatchNorm, Renorm):
        return lambda rule, known, gate, channel, factor, d_center, d_factor: (
            d_center,
            -0.5 * d_factor * factor / (known.var[channel] + rule.eps),
            0.0,
        )
    return lambda rule, known, gate, channel, factor, d_center, d_factor: _to_blended(
        known, gate, channel, d_center, -0.5 * d_factor * factor * factor * factor
    )


@inline
def _to_blended(known: Known, gate: float, channel: int, d_center: float, d_var: float) -> tuple[float, float, float]:
    apart = float(known.mean[channel]) - float(known.stored_mean[channel])
    change = float(known.var[channel]) - float(known.stored_var[channel]) + (1.0 - 2.0 * gate) * apart * apart
    d_mean = gate * d_center + 2.0 * gate * (1.0 - gate) * apart * d_var
    return d_mean, gate * d_var, d_center * apart + d_var * change


def gate_gradient(rule: Rule, gate: float, ratio: float, d_gate: float, target: Array | None) -> None:
    """Write the gradient with respect to the confidence."""
    raise NotImplementedError


@choose_inline(gate_gradient)
def _gate_gradient_of(rule: Type, gate: Type, ratio: Type, d_gate: Type, target: Type) -> Callable[..., None]:
    if rule.instance_class is Gated:
        return lambda rule, gate, ratio, d_gate, target: _to_confidence(rule, gate, ratio, d_gate, target)
    return lambda rule, gate, ratio, d_gate, target: None


@inline
def _to_confidence(rule: Gated, gate: float, ratio: float, d_gate: float, target: Array | None) -> None:
    if target is not None:
        slope = d_gate * gate * (1.0 - gate)
        target[0] = slope
        target[1] = slope * math.log(max(ratio, 1e-6))
        target[2] = -slope * math.log(rule.noise)

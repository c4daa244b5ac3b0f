"""Compiled rules and the functions by which the kernels call them, in float64 per channel.

The compiled form of ``rules/NAME.py`` is in ``_numba_NAME.py``. A rule maps a channel's moments, the batch's and the
stored ones, to (x − center)·factor·weight + offset·weight + bias. It maps gradients with respect to center and factor
to gradients with respect to the batch's mean and variance. Its type selects the functions when a kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from steadynorm.ops._numba_types import Array, Type, choose_inline, inline

__all__ = [
    "ChannelMoments",
    "Form",
    "Rule",
    "affine_of",
    "define",
    "gate_of",
    "mixture",
    "moment_gradients",
    "reads_running",
    "saved_rows",
    "write_confidence_gradient",
]

Rule = Any
"""A NamedTuple of float64 numbers, registered by :func:`define`."""


class ChannelMoments(NamedTuple):
    """Moments per channel, float32."""

    mean: Array
    var: Array
    stored_mean: Array  # empty or meaningless if the rule does not read it
    stored_var: Array  # as stored_mean


def _whole_gate(rule: Rule, moments: ChannelMoments) -> tuple[float, float]:
    return 1.0, 0.0


def _of_own_variance(
    rule: Rule, moments: ChannelMoments, gate: float, channel: int, factor: float, d_center: float, d_factor: float
) -> tuple[float, float, float]:
    """Differentiate center = mean and factor = constant/√(var + eps)."""
    return d_center, -0.5 * d_factor * factor / (moments.var[channel] + rule.eps), 0.0


def _no_confidence(rule: Rule, gate: float, ratio: float, d_gate: float, target: Array) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Form:
    """The functions of a compiled rule, with the arguments of the functions of the same name below."""

    reads_running: bool
    """Whether the rule reads the running statistics; a call then saves them as the rule read them."""
    affine_of: Callable[..., tuple[float, float, float]]
    gate_of: Callable[..., tuple[float, float]] = _whole_gate
    moment_gradients: Callable[..., tuple[float, float, float]] = _of_own_variance
    write_confidence_gradient: Callable[..., None] = _no_confidence


_forms: dict[type, Form] = {}


def define(rule: type, form: Form) -> None:
    """Register a rule for the kernels."""
    _forms[rule] = form


def reads_running(rule: Rule) -> bool:
    """Whether the rule reads the running statistics."""
    return _forms[type(rule)].reads_running


@choose_inline(reads_running)
def _reads_running(rule: Type) -> Callable[..., bool]:
    result = _forms[rule.instance_class].reads_running
    return lambda rule: result


def saved_rows(rule: Rule, chunks: int) -> int:
    """Count the rows saved for the backward: moments of the batch, stored ones, each chunk's if there are several."""
    return 2 + (2 if reads_running(rule) else 0) + (0 if chunks == 1 else 2 * chunks)


@choose_inline(saved_rows)
def _saved_rows(rule: Type, chunks: Type) -> Callable[..., int]:
    return lambda rule, chunks: 2 + (2 if reads_running(rule) else 0) + (0 if chunks == 1 else 2 * chunks)


def gate_of(rule: Rule, moments: ChannelMoments) -> tuple[float, float]:
    """Return the weight of the batch in the mixture, and the ratio distance² / noise that it was computed from."""
    raise NotImplementedError


@choose_inline(gate_of)
def _gate_of(rule: Type, moments: Type) -> Callable[..., tuple[float, float]]:
    return _forms[rule.instance_class].gate_of


def affine_of(rule: Rule, moments: ChannelMoments, gate: float, channel: int) -> tuple[float, float, float]:
    """Return a channel's center, factor and offset."""
    raise NotImplementedError


@choose_inline(affine_of)
def _affine_of(rule: Type, moments: Type, gate: Type, channel: Type) -> Callable[..., tuple[float, float, float]]:
    return _forms[rule.instance_class].affine_of


def moment_gradients(
    rule: Rule, moments: ChannelMoments, gate: float, channel: int, factor: float, d_center: float, d_factor: float
) -> tuple[float, float, float]:
    """Return the gradients with respect to mean, variance and gate.

    Args:
        factor: from :func:`affine_of`.
        d_center: gradient with respect to the center.
        d_factor: gradient with respect to the factor.
    """
    raise NotImplementedError


@choose_inline(moment_gradients)
def _moment_gradients(
    rule: Type, moments: Type, gate: Type, channel: Type, factor: Type, d_center: Type, d_factor: Type
) -> Callable[..., tuple[float, float, float]]:
    return _forms[rule.instance_class].moment_gradients


def write_confidence_gradient(rule: Rule, gate: float, ratio: float, d_gate: float, target: Array) -> None:
    """Write the gradient with respect to the confidence, unless the target is empty."""
    raise NotImplementedError


@choose_inline(write_confidence_gradient)
def _write_confidence_gradient(rule: Type, gate: Type, ratio: Type, d_gate: Type, target: Type) -> Callable[..., None]:
    return _forms[rule.instance_class].write_confidence_gradient


@inline
def mixture(mean: float, var: float, other_mean: float, other_var: float, share: float) -> tuple[float, float]:
    """Return the moments of a mixture: the other distribution with probability ``share``, else the first.

    See :func:`steadynorm.statistics.moments.mixture`.
    """
    rest, apart = 1.0 - share, other_mean - mean
    return rest * mean + share * other_mean, rest * var + share * other_var + rest * share * apart * apart

"""The rule of ``rules/batch_renorm.py``, compiled."""

from __future__ import annotations

import math
from typing import NamedTuple

from steadynorm.ops._numba_rules import ChannelMoments, Form, define
from steadynorm.ops._numba_types import inline

__all__ = ["BatchRenorm"]


class BatchRenorm(NamedTuple):
    """Batch renorm: batch norm, corrected towards the stored moments within bounds."""

    eps: float
    r_max: float
    d_max: float


@inline
def _clip(value: float, low: float, high: float) -> float:
    """Limit a value to an interval; NaN stays NaN."""
    return low if value < low else high if value > high else value


def _affine_of(rule: BatchRenorm, moments: ChannelMoments, gate: float, channel: int) -> tuple[float, float, float]:
    """Center = mean, factor = r/√(var + eps), offset = d."""
    std = math.sqrt(moments.var[channel] + rule.eps)
    stored_std = math.sqrt(moments.stored_var[channel] + rule.eps)
    r = _clip(std / stored_std, 1.0 / rule.r_max, rule.r_max)
    apart = float(moments.mean[channel]) - float(moments.stored_mean[channel])
    return moments.mean[channel], r / std, _clip(apart / stored_std, -rule.d_max, rule.d_max)


define(BatchRenorm, Form(reads_running=True, affine_of=_affine_of))

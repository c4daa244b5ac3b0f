"""The rule of ``rules/batch_norm.py``, compiled."""

from __future__ import annotations

import math
from typing import NamedTuple

from steadynorm.ops._numba_rules import ChannelMoments, Form, define

__all__ = ["BatchNorm"]


class BatchNorm(NamedTuple):
    """Batch norm by the batch statistics."""

    eps: float


def _affine_of(rule: BatchNorm, moments: ChannelMoments, gate: float, channel: int) -> tuple[float, float, float]:
    """Center = mean, factor = 1/√(var + eps), offset = 0."""
    return moments.mean[channel], 1.0 / math.sqrt(moments.var[channel] + rule.eps), 0.0


define(BatchNorm, Form(reads_running=False, affine_of=_affine_of))

"""Moments of a batch, and updates of running statistics: functions on tensors."""

from steadynorm.statistics.moments import Moments, measure
from steadynorm.statistics.running import exponential, update_running_, weight_of
from steadynorm.statistics.self_tuned import SelfTuned
from steadynorm.statistics.window import as_row, pool

__all__ = ["Moments", "SelfTuned", "as_row", "exponential", "measure", "pool", "update_running_", "weight_of"]

"""What a batch's moments are and how stored ones follow them: pure functions on tensors."""

from steadynorm.statistics.moments import Moments, measure
from steadynorm.statistics.running import cumulative, exponential

__all__ = ["Moments", "cumulative", "exponential", "measure"]

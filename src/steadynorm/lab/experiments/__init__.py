"""The registry: every experiment is one file here and one line of the list below.

Commands, help, reports and tests are derived from it.
"""

from __future__ import annotations

from typing import Any

from steadynorm.lab.experiment import Experiment
from steadynorm.lab.experiments import (
    classic,
    compare,
    landscape,
    recalibration,
    scale,
    shift,
    statistics,
    stream,
    sweep,
)

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, Experiment[Any]] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (compare, sweep, shift, stream, scale, landscape, classic, statistics, recalibration)
}
"""Command name -> experiment."""

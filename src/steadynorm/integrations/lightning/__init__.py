"""Callbacks for Lightning's Trainer; of ``lightning`` and of ``pytorch_lightning``, whichever is imported first."""

from steadynorm.integrations.lightning.freeze import FreezeStatistics
from steadynorm.integrations.lightning.readings import ReadingsCallback
from steadynorm.integrations.lightning.recalibrate import RecalibrateCallback
from steadynorm.integrations.lightning.watch import WatchCallback

__all__ = ["FreezeStatistics", "ReadingsCallback", "RecalibrateCallback", "WatchCallback"]

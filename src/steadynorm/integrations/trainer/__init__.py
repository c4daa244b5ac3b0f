"""Callbacks for the Trainer of Hugging Face's transformers, of the same names as those for Lightning."""

from steadynorm.integrations.trainer.freeze import FreezeStatistics
from steadynorm.integrations.trainer.readings import ReadingsCallback
from steadynorm.integrations.trainer.recalibrate import RecalibrateCallback
from steadynorm.integrations.trainer.watch import WatchCallback

__all__ = ["FreezeStatistics", "ReadingsCallback", "RecalibrateCallback", "WatchCallback"]

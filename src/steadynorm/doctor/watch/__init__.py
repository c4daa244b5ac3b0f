"""Watch the batch norms during training: report harm, and undo it."""

from steadynorm.doctor.watch.event import Event, WatchReport
from steadynorm.doctor.watch.watch import Watch

__all__ = ["Event", "Watch", "WatchReport"]

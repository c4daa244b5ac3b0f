"""Look at the batch norms of a training all the time: say what harms them, and undo it."""

from steadynorm.doctor.watch.event import Event, WatchReport
from steadynorm.doctor.watch.watch import Watch

__all__ = ["Event", "Watch", "WatchReport"]

"""Lightning callback that watches batch norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from steadynorm.doctor.watch import Event, WatchReport
from steadynorm.doctor.watch.watch import Policy
from steadynorm.integrations.lightning.base import Callback, Trainer
from steadynorm.integrations.loggers import log
from steadynorm.integrations.watching import EVERY, Watching

__all__ = ["WatchCallback"]


class WatchCallback(Callback):
    """Watch the batch norms of a fit: report harm, and under ``policy="revert"`` undo it.

    See :class:`steadynorm.Watch`. Each event is a line of the logger ``steadynorm.watch``, and ``watch/CHECK`` in the
    Trainer's loggers: 1 when it begins, 0 when it ends. A resumed fit continues with the same state. If another
    callback, such as FreezeStatistics, replaces layers, the watch restarts with the next epoch.

    Args:
        policy: ``"warn"`` or ``"revert"``.
        every: training forwards between two judgements, at least 16.
        on_event: called with every event.

    Raises:
        ValueError: an unknown policy; ``every`` below 16.

    Warns:
        UserWarning: the model has nothing to watch.
    """

    def __init__(
        self, policy: Policy = "warn", *, every: int = EVERY, on_event: Callable[[Event], object] | None = None
    ) -> None:
        super().__init__()
        self._work = Watching("WatchCallback", policy, every, on_event)

    @property
    def events(self) -> list[Event]:
        """All events so far."""
        return self._work.events

    @property
    def report(self) -> WatchReport | None:
        """Report since there are layers to watch; None if there never were."""
        return self._work.report

    def state_dict(self) -> dict[str, Any]:
        """Return the state, to resume with the same decisions."""
        return self._work.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state, for when the training begins."""
        self._work.load_state_dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Start watching."""

        def logs(event: Event) -> None:
            for logger in trainer.loggers:
                log({event.check: float(not event.over)}, trainer.global_step, to=logger, prefix="watch/")

        self._work.begin(pl_module, logs)

    def on_train_batch_start(self, trainer: Trainer, pl_module: nn.Module, batch: object, batch_idx: int) -> None:
        """Restart if layers were replaced."""
        if batch_idx == 0:
            self._work.renew(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Stop watching."""
        self._work.end()

    def on_exception(self, trainer: Trainer, pl_module: nn.Module, exception: BaseException) -> None:
        """Stop watching."""
        self._work.end()

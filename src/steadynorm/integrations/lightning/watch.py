"""A watch over a fit of Lightning's."""

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
    """Watch the batch norms of a fit: say what harms them, and under ``policy="revert"`` undo it.

    See :class:`steadynorm.Watch`. Each event is a line of the logger ``steadynorm.watch``, and ``watch/CHECK`` in the
    Trainer's loggers: 1 where something begins, 0 where it is over. A fit that resumes goes on with the same
    decisions. Where another callback exchanges layers, such as FreezeStatistics, the watch starts again with the epoch.

    Args:
        policy: ``"warn"`` or ``"revert"``.
        every: training forwards in a stretch, at least 16.
        on_event: called with every event as it comes.

    Raises:
        ValueError: another policy; fewer forwards.

    Warns:
        UserWarning: there is nothing to be watched.
    """

    def __init__(
        self, policy: Policy = "warn", *, every: int = EVERY, on_event: Callable[[Event], object] | None = None
    ) -> None:
        super().__init__()
        self._work = Watching("WatchCallback", policy, every, on_event)

    @property
    def events(self) -> list[Event]:
        """All that this callback has seen."""
        return self._work.events

    @property
    def report(self) -> WatchReport | None:
        """What was seen since layers that can be watched stand there; None where none ever did."""
        return self._work.report

    def state_dict(self) -> dict[str, Any]:
        """Give what it takes to go on."""
        return self._work.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there when the training begins."""
        self._work.load_state_dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Begin."""

        def logs(event: Event) -> None:
            for logger in trainer.loggers:
                log({event.check: float(not event.over)}, trainer.global_step, to=logger, prefix="watch/")

        self._work.begin(pl_module, logs)

    def on_train_batch_start(self, trainer: Trainer, pl_module: nn.Module, batch: object, batch_idx: int) -> None:
        """Look whether the layers are the same ones."""
        if batch_idx == 0:
            self._work.renew(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Let go of the model."""
        self._work.end()

    def on_exception(self, trainer: Trainer, pl_module: nn.Module, exception: BaseException) -> None:
        """Let go of the model."""
        self._work.end()

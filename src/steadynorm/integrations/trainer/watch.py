"""Trainer callback that watches batch norms."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from steadynorm.doctor.watch import Event, WatchReport
from steadynorm.doctor.watch.watch import Policy
from steadynorm.integrations.trainer.base import Arguments, Control, Part, State, TrainerCallback
from steadynorm.integrations.watching import EVERY, Watching

__all__ = ["WatchCallback"]


class WatchCallback(TrainerCallback):
    """Watch the batch norms of a training: report harm, and under ``policy="revert"`` undo it.

    See :class:`steadynorm.Watch`. Each event is a line of the logger ``steadynorm.watch``. Every checkpoint gets a file
    per rank, from which a training resumed in the same ``output_dir`` continues. If another callback, such as
    FreezeStatistics, replaces layers, the watch restarts with the next epoch.

    Args:
        policy: ``"warn"`` or ``"revert"``.
        every: training forwards between two judgements, at least 16.
        on_event: called with every event.

    Raises:
        ValueError: an unknown policy; ``every`` below 16.

    Warns:
        UserWarning: the model has nothing to watch; a training resumes without its file.
    """

    def __init__(
        self, policy: Policy = "warn", *, every: int = EVERY, on_event: Callable[[Event], object] | None = None
    ) -> None:
        self._work = Watching("WatchCallback", policy, every, on_event)
        self._looked = True

    @property
    def events(self) -> list[Event]:
        """All events so far."""
        return self._work.events

    @property
    def report(self) -> WatchReport | None:
        """Report since there are layers to watch; None if there never were."""
        return self._work.report

    def on_train_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Start watching, or resume."""
        if state.global_step:
            path = _file_of(args, state)
            if path.exists():
                self._work.load_state_dict(torch.load(path, weights_only=True))
            else:
                warnings.warn(f"WatchCallback: the watch starts again: there is no {path}.", stacklevel=2)
        self._work.begin(parts["model"])

    def on_epoch_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Start watching once all callbacks have run."""
        self._looked = False

    def on_step_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Restart if layers were replaced."""
        if not self._looked:
            self._work.renew(parts["model"])
        self._looked = True

    def on_save(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Save the state beside the checkpoint."""
        path = _file_of(args, state)
        if path.parent.is_dir():
            torch.save(self._work.state_dict(), path)

    def on_train_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Stop watching."""
        self._work.end()


def _file_of(args: Arguments, state: State) -> Path:
    return Path(args.output_dir or ".", f"checkpoint-{state.global_step}", f"steadynorm_watch_{args.process_index}.pt")

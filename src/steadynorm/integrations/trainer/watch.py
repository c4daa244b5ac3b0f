"""A watch over a training of transformers' Trainer."""

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
    """Watch the batch norms of a training: say what harms them, and under ``policy="revert"`` undo it.

    See :class:`steadynorm.Watch`. Each event is a line of the logger ``steadynorm.watch``. In every checkpoint lies a
    file for each rank, from which a training that resumes in the same ``output_dir`` goes on with the same decisions.
    Where another callback exchanges layers, such as FreezeStatistics, the watch starts again with the epoch.

    Args:
        policy: ``"warn"`` or ``"revert"``.
        every: training forwards in a stretch, at least 16.
        on_event: called with every event as it comes.

    Raises:
        ValueError: another policy; fewer forwards.

    Warns:
        UserWarning: there is nothing to be watched; a training resumes without its file.
    """

    def __init__(
        self, policy: Policy = "warn", *, every: int = EVERY, on_event: Callable[[Event], object] | None = None
    ) -> None:
        self._work = Watching("WatchCallback", policy, every, on_event)
        self._looked = True

    @property
    def events(self) -> list[Event]:
        """All that this callback has seen."""
        return self._work.events

    @property
    def report(self) -> WatchReport | None:
        """What was seen since layers that can be watched stand there; None where none ever did."""
        return self._work.report

    def on_train_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Begin, or go on."""
        if state.global_step:
            path = _file_of(args, state)
            if path.exists():
                self._work.load_state_dict(torch.load(path, weights_only=True))
            else:
                warnings.warn(f"WatchCallback: the watch starts again: there is no {path}.", stacklevel=2)
        self._work.begin(parts["model"])

    def on_epoch_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Look at the layers when all callbacks have done what they do now."""
        self._looked = False

    def on_step_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Look whether the layers are the same ones."""
        if not self._looked:
            self._work.renew(parts["model"])
        self._looked = True

    def on_save(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Leave what it takes to go on beside the checkpoint."""
        path = _file_of(args, state)
        if path.parent.is_dir():
            torch.save(self._work.state_dict(), path)

    def on_train_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Let go of the model."""
        self._work.end()


def _file_of(args: Arguments, state: State) -> Path:
    return Path(args.output_dir or ".", f"checkpoint-{state.global_step}", f"steadynorm_watch_{args.process_index}.pt")

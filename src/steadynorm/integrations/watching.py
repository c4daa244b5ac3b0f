"""Shared implementation of the callbacks that watch a training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from steadynorm.doctor.watch import Event, Watch, WatchReport
from steadynorm.doctor.watch.watch import Policy
from steadynorm.surgery.named_modules import batch_norms_of

__all__ = ["EVERY", "Watching"]

EVERY = 32
"""Default number of training forwards in a stretch."""


class Watching:
    """A watch that starts with a training, resumes from a checkpoint, and restarts when layers are replaced.

    Args:
        caller: name of the callback, for messages.
        policy: see :class:`steadynorm.Watch`.
        every: see :class:`steadynorm.Watch`.
        on_event: see :class:`steadynorm.Watch`.

    Raises:
        ValueError: an unknown policy; ``every`` below 16.
    """

    def __init__(self, caller: str, policy: Policy, every: int, on_event: Callable[[Event], object] | None) -> None:
        Watch(nn.BatchNorm1d(1), policy, every=every)  # refuses wrong arguments before there is a model
        self.events: list[Event] = []
        self._caller, self._policy, self._every, self._on_event = caller, policy, every, on_event
        self._logs: Callable[[Event], object] | None = None
        self._watch: Watch | None = None
        self._is_on = False
        self._norms: list[nn.Module] = []
        self._state: Mapping[str, Any] | None = None

    @property
    def report(self) -> WatchReport | None:
        """Report since there are layers to watch; None if there never were."""
        return None if self._watch is None else self._watch.report()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for resuming; empty if nothing is watched."""
        return {} if self._watch is None else self._watch.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state, for when the training begins."""
        self._state = state or None

    def begin(self, model: nn.Module, logs: Callable[[Event], object] | None = None) -> None:
        """Start watching; warn if there is nothing to watch, unless there was before: then the earlier report stays.

        Args:
            model: the module whose forward, or whose children's forwards, the training calls.
            logs: called with each event, in addition to the user's callback.
        """
        self.end()
        self._logs, self._norms = logs, _norms_of(model)
        state, self._state = self._state, None
        try:
            watch = Watch(model, self._policy, every=self._every, on_event=self._tell)
        except ValueError as error:
            if self._watch is None:
                warnings.warn(f"{self._caller}: nothing is watched: {error}", stacklevel=2)
            return
        if state is not None:
            watch.load_state_dict(state)
        self._watch, self._is_on = watch, True
        watch.start()

    def renew(self, model: nn.Module) -> None:
        """Restart if layers of the model were replaced."""
        now = _norms_of(model)
        if [id(each) for each in now] != [id(each) for each in self._norms]:
            self.begin(model, self._logs)

    def end(self) -> None:
        """Stop watching; the report stays."""
        if self._watch is not None and self._is_on:
            self._watch.stop()
        self._is_on = False

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        for each in (self._logs, self._on_event):
            if each is not None:
                each(event)


def _norms_of(model: nn.Module) -> list[nn.Module]:
    return [each.module for each in batch_norms_of(model)]

"""Trainer callback that logs readings of norms."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from steadynorm.integrations.loggers import PREFIX, log
from steadynorm.integrations.trainer.base import Arguments, Control, Part, State, TrainerCallback
from steadynorm.surgery import readings_during, statistics_of
from steadynorm.surgery.named_modules import Where

__all__ = ["ReadingsCallback"]


class ReadingsCallback(TrainerCallback):
    """Log readings of the norms: gates, renorm's r and d, self-tuned momenta, distances.

    See :func:`steadynorm.surgery.readings_during`. Every n-th step is read while it trains; several batches in a step
    are averaged. With several ranks, the first one logs.

    Args:
        to: where to write, see :func:`steadynorm.integrations.loggers.log`.
        every_n_steps: steps from one reading to the next; None is the Trainer's ``logging_steps``.
        stored: running statistics to measure distances from; None takes those at the start of the training.
        where: (qualified name, module) -> whether to read it; None takes all.
        prefix: put before each name.

    Raises:
        ValueError: ``every_n_steps`` is below 1; ``stored`` has none of the layers.
    """

    def __init__(
        self,
        to: Any,  # noqa: ANN401 (as there)
        *,
        every_n_steps: int | None = None,
        stored: Mapping[str, Tensor] | None = None,
        where: Where | None = None,
        prefix: str = PREFIX,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"ReadingsCallback: every_n_steps must be at least 1, got {every_n_steps}.")
        self._to, self._every, self._given, self._where, self._prefix = to, every_n_steps, stored, where, prefix
        self._stored: Mapping[str, Tensor] = {}
        self._open: ExitStack | None = None
        self._readings: dict[str, float] = {}

    def on_train_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Remember the running statistics at the start."""
        self._open = None
        model: nn.Module = parts["model"]
        self._stored = statistics_of(model, where=self._where) if self._given is None else self._given

    def on_step_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Start a reading if one is due."""
        every = self._every or state.logging_steps
        if (state.global_step + 1) % every == 0:
            self._open = ExitStack()
            reading = readings_during(parts["model"], self._stored or None, where=self._where)
            self._readings = self._open.enter_context(reading)

    def on_step_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Log the reading."""
        if self._open is None:
            return
        self._open.close()
        self._open = None
        if state.is_world_process_zero:
            log(self._readings, state.global_step, to=self._to, prefix=self._prefix)

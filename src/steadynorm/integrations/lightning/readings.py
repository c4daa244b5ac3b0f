"""Lightning callback that logs readings of norms."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from steadynorm.integrations.lightning.base import Callback, Trainer
from steadynorm.integrations.loggers import PREFIX, log
from steadynorm.surgery import readings_during, statistics_of
from steadynorm.surgery.named_modules import Where

__all__ = ["ReadingsCallback"]


class ReadingsCallback(Callback):
    """Log readings of the norms: gates, renorm's r and d, self-tuned momenta, distances.

    See :func:`steadynorm.surgery.readings_during`. Every n-th batch is read while it trains, and logged to all loggers
    of the Trainer; ``callback_metrics`` has the readings too. With several ranks, the first one reads.

    Args:
        every_n_steps: batches from one reading to the next; None uses the Trainer's ``log_every_n_steps``.
        stored: running statistics to measure distances from; None takes those at the start of the fit.
        where: (qualified name, module) -> whether to read it; None takes all.
        prefix: put before each name.

    Raises:
        ValueError: ``every_n_steps`` is below 1; ``stored`` has none of the layers.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        stored: Mapping[str, Tensor] | None = None,
        where: Where | None = None,
        prefix: str = PREFIX,
    ) -> None:
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"ReadingsCallback: every_n_steps must be at least 1, got {every_n_steps}.")
        self._every, self._where, self._prefix = every_n_steps, where, prefix
        self._stored = None if stored is None else dict(stored)
        self._batches = 0
        self._open: ExitStack | None = None
        self._readings: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the running statistics that distances are measured from, and the number of trained batches."""
        return {"stored": self._stored, "batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._stored, self._batches = state_dict["stored"], state_dict["batches"]

    def on_train_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Remember the running statistics at the start."""
        if self._stored is None:
            self._stored = statistics_of(pl_module, where=self._where)

    def on_train_batch_start(self, trainer: Trainer, pl_module: nn.Module, batch: object, batch_idx: int) -> None:
        """Start a reading if one is due."""
        every = self._every or trainer.log_every_n_steps
        self._batches += 1
        if every and self._batches % every == 0:
            self._open = ExitStack()
            self._readings = self._open.enter_context(
                readings_during(pl_module, self._stored or None, where=self._where)
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: object) -> None:  # noqa: ANN401
        """Log the reading."""
        if self._open is None:
            return
        self._open.close()
        self._open = None
        step = max(trainer.global_step - 1, 0)  # the one that Lightning gives to what a training step logs
        for logger in trainer.loggers:
            log(self._readings, step, to=logger, prefix=self._prefix)
        pl_module.log_dict({f"{self._prefix}{name}": value for name, value in self._readings.items()}, logger=False)

    def on_exception(self, trainer: Trainer, pl_module: nn.Module, exception: BaseException) -> None:
        """Stop reading."""
        if self._open is not None:
            self._open.__exit__(type(exception), exception, None)
            self._open = None

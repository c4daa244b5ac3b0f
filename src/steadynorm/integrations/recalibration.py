"""Shared implementation of the callbacks that recalibrate running statistics."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, TypedDict

from torch import nn

from steadynorm.integrations.batches import FirstBatches
from steadynorm.surgery import Change, NothingDoneError, recalibrate_
from steadynorm.surgery.batches import Forward
from steadynorm.surgery.named_modules import Where

__all__ = ["NUMBER", "SETTLED", "Options", "Recalibration"]

NUMBER = 50
"""Default number of batches."""
SETTLED = 0.01
"""Change below which a pass is the last: about the sampling error of this many batches, reached in few passes."""


class Options(TypedDict, total=False):
    """Options passed on to :func:`steadynorm.surgery.recalibrate_`."""

    where: Where | None
    prior: float
    tolerance: float | None
    settled: float
    passes: int | None


class Recalibration:
    """Recalibration from a training's own batches, or from others.

    Args:
        caller: name of the callback, for messages.
        batches: batches to use; None uses those of the training loader.
        number: largest number of batches on each rank.
        forward: (model, batch) -> output; None uses the framework's.
        options: see :class:`Options`; ``settled`` defaults to 0.01.

    Raises:
        TypeError: ``batches`` can be iterated only once.
        ValueError: ``number`` is below 1.
    """

    def __init__(
        self, caller: str, batches: Iterable[Any] | None, number: int, forward: Forward | None, options: Options
    ) -> None:
        unknown = options.keys() - Options.__annotations__.keys()
        if unknown:
            raise TypeError(
                f"{caller}: options must be among {', '.join(Options.__annotations__)}, got {min(unknown)}."
            )
        FirstBatches([] if batches is None else batches, number, caller=caller)  # refuses what cannot be gone through
        self.change: Change | None = None
        self._caller, self._batches, self._number = caller, batches, number
        self._options: Options = {"settled": SETTLED, **options}
        self.forward = forward
        self._warned: set[str] = set()

    @property
    def needs_loader(self) -> bool:
        """Whether the batches come from the training loader."""
        return self._batches is None

    def run(
        self,
        model: nn.Module,
        loader: Any,  # noqa: ANN401 (any iterable)
        forward: Forward,
        *,
        most: float = float("inf"),
        but: frozenset[str] = frozenset(),
    ) -> None:
        """Recalibrate, and keep the Change; warn once of each failure.

        Args:
            model: the root, neither wrapped nor compiled.
            loader: the training loader; needed if no batches were given.
            forward: the framework's way to run the model on a batch of this loader.
            most: largest number of batches, in addition to ``number``.
            but: layers that are left out, in addition to ``where``.
        """
        batches = loader if self._batches is None else self._batches
        number = int(min(self._number, max(most, 1)))
        source = FirstBatches(batches, number, caller=self._caller)
        options = self._options if not but else self._options | {"where": _without(but, self._options.get("where"))}
        self.change = None
        try:
            with source.kept():
                change = recalibrate_(model, source, forward=self.forward or forward, **options)
        except NothingDoneError as error:
            why = error.refused[0] if error.refused else "all layers were frozen."
            self._warn(f"{self._caller}: no statistics were measured again: {why}")
            return
        if change.changed:
            self.change = change
        else:
            self._warn(f"{self._caller}: no statistics were measured again: the model has no batch norm.")

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=2)


def _without(names: frozenset[str], where: Where | None) -> Where:
    return lambda name, module: name not in names and (where is None or where(name, module))

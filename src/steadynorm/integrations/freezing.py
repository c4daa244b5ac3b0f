"""Shared implementation of the callbacks that freeze running statistics."""

from __future__ import annotations

import warnings

from torch import nn

from steadynorm.surgery import Change, freeze_
from steadynorm.surgery.batches import Batch
from steadynorm.surgery.named_modules import Where, batch_norms_of

__all__ = ["Freeze"]


class Freeze:
    """Freeze running statistics after some epochs, and unfreeze them at the end.

    Args:
        caller: name of the callback, for messages.
        after_epoch: number of epochs to train before.
        where: qualified name and module -> whether to freeze it; None takes all.
        example: see :func:`steadynorm.surgery.freeze_`.

    Raises:
        ValueError: ``after_epoch`` is below 0.
    """

    def __init__(self, caller: str, after_epoch: int, where: Where | None, example: Batch) -> None:
        if after_epoch < 0:
            raise ValueError(f"{caller}: after_epoch must be at least 0, got {after_epoch}.")
        self.change: Change | None = None
        self._caller, self._after, self._where, self._example = caller, after_epoch, where, example

    @property
    def is_frozen(self) -> bool:
        """Whether the running statistics are frozen now."""
        return self.change is not None

    def try_(self, model: nn.Module) -> bool:
        """Freeze and unfreeze, to report before the first epoch what cannot be frozen.

        Returns:
            whether the model's buffers are the same ones, in the same order, when it is frozen.

        Raises:
            NothingDoneError: nothing can be frozen.
            TypeError: modules cannot be replaced any more.
        """
        before = [name for name, _ in model.named_buffers()]
        change = self._frozen(model)
        same = before == [name for name, _ in model.named_buffers()]
        change.undo()
        for each in change.refused:
            warnings.warn(f"{self._caller}: {each}", stacklevel=2)
        if not batch_norms_of(model):
            warnings.warn(f"{self._caller}: no statistics to freeze: the model has no batch norm.", stacklevel=2)
        return same

    def freeze_from(self, model: nn.Module, epochs: float) -> None:
        """Freeze once so many epochs have been trained."""
        if epochs >= self._after and self.change is None:
            self.change = self._frozen(model)

    def let_go(self) -> None:
        """Restore the layers, with their present statistics and parameters."""
        change, self.change = self.change, None
        if change is None:
            return
        try:
            change.undo()
        except RuntimeError as error:
            warnings.warn(f"{self._caller}: the layers stay frozen: {error}", stacklevel=2)

    def _frozen(self, model: nn.Module) -> Change:
        return freeze_(model, affine=False, where=self._where, example=self._example)

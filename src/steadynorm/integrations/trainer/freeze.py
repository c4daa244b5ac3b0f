"""Trainer callback that freezes running statistics."""

from __future__ import annotations

from steadynorm.integrations.freezing import Freeze
from steadynorm.integrations.trainer.base import Arguments, Control, Part, State, TrainerCallback, trained
from steadynorm.surgery.batches import Batch
from steadynorm.surgery.named_modules import Where

__all__ = ["FreezeStatistics"]


class FreezeStatistics(TrainerCallback):
    """Freeze the running statistics after some epochs; from then on training normalizes by them too.

    The Trainer calls ``model.train()`` before every step, which undoes ``.eval()`` on single layers, but not this.
    Weight and bias are still learned. When the training ends, also by an error, the layers become what they were, with
    the frozen running statistics. Checkpoints have the same keys throughout; resuming from one freezes if enough epochs
    were trained. See :func:`steadynorm.surgery.freeze_`.

    Args:
        after_epoch: number of epochs to train before; 0 freezes from the start.
        where: (qualified name, module) -> whether to freeze it; None takes all.
        example: a batch to run the model on, if a synchronized layer does not say whether it is 1d, 2d or 3d.

    Raises:
        ValueError: ``after_epoch`` is below 0.
        TypeError: a part of the model is compiled or wrapped, so its modules cannot be replaced.
        NothingDoneError: no layer can be frozen.

    Warns:
        UserWarning: a layer cannot be frozen; the model has no batch norm.

    Source: Wu & Johnson 2021 (arXiv 2105.07576), section 3.
    """

    def __init__(self, after_epoch: int, *, where: Where | None = None, example: Batch = None) -> None:
        self._freeze = Freeze("FreezeStatistics", after_epoch, where, example)

    @property
    def is_frozen(self) -> bool:
        """Whether the running statistics are frozen now."""
        return self._freeze.is_frozen

    def on_train_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Refuse combinations that would fail later."""
        self._freeze.let_go()  # of a training that raised
        self._freeze.try_(parts["model"])

    def on_epoch_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Freeze when the epochs are over; a training resumed in the middle of an epoch comes here too."""
        self._freeze.freeze_from(parts["model"], trained(state))

    def on_train_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Restore the layers."""
        self._freeze.let_go()

"""Statistics that freeze within a training of transformers' Trainer."""

from __future__ import annotations

from steadynorm.integrations.freezing import Freeze
from steadynorm.integrations.trainer.base import Arguments, Control, Part, State, TrainerCallback, trained
from steadynorm.surgery.batches import Batch
from steadynorm.surgery.named_modules import Where

__all__ = ["FreezeStatistics"]


class FreezeStatistics(TrainerCallback):
    """Freeze the running estimates once some epochs have been trained: from then on training normalizes by them.

    The Trainer calls ``model.train()`` before every step, which would wake layers that were only set to evaluate; see
    :func:`steadynorm.surgery.freeze_`. Weight and bias go on learning. At the end of the training the layers are again
    what they were, with the estimates as they were frozen. Checkpoints have the same keys throughout; a training that
    resumes from one freezes at once where so many epochs have been trained.

    Args:
        after_epoch: whole epochs to be trained before; 0 freezes from the start.
        where: qualified name and module -> whether to freeze it; None takes all.
        example: a batch, to run the model where a synchronised layer does not tell its dimensions.

    Raises:
        ValueError: ``after_epoch`` is below 0.
        TypeError: a part of the model is compiled or wrapped, so that its modules cannot be exchanged.
        NothingDoneError: no layer can be frozen.

    Warns:
        UserWarning: a layer cannot be frozen; the model has no batch norm.

    Source: Wu & Johnson 2021 (arXiv 2105.07576), section 3.
    """

    def __init__(self, after_epoch: int, *, where: Where | None = None, example: Batch = None) -> None:
        self._freeze = Freeze("FreezeStatistics", after_epoch, where, example)

    @property
    def is_frozen(self) -> bool:
        """Whether the statistics are frozen now."""
        return self._freeze.is_frozen

    def on_train_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Refuse what would fail later."""
        self._freeze.let_go()  # of a training that raised
        self._freeze.try_(parts["model"])

    def on_epoch_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Freeze where it is time; a training that resumes in the middle of an epoch comes here too."""
        self._freeze.freeze_from(parts["model"], trained(state))

    def on_train_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Put the layers back."""
        self._freeze.let_go()

"""Statistics that freeze within a fit of Lightning's."""

from __future__ import annotations

from typing import Any

from torch import nn

from steadynorm.integrations.freezing import Freeze
from steadynorm.integrations.lightning.base import Callback, Trainer, is_a
from steadynorm.surgery.batches import Batch
from steadynorm.surgery.named_modules import Where

__all__ = ["FreezeStatistics"]


class FreezeStatistics(Callback):
    """Freeze the running estimates once some epochs have been trained: from then on training normalizes by them.

    Training then sees what evaluation sees, and no batch moves the estimates any more, whatever ``.train()`` does; see
    :func:`steadynorm.surgery.freeze_`. Weight and bias go on learning. At the end of the fit, and where it raises, the
    layers are again what they were, with the estimates as they were frozen. Checkpoints have the same keys throughout;
    a fit that resumes from one freezes where that one had.

    Args:
        after_epoch: whole epochs to be trained before; 0 freezes from the start.
        where: qualified name and module -> whether to freeze it; None takes all.
        example: a batch, to run the model where a synchronised layer does not tell its dimensions.

    Raises:
        ValueError: ``after_epoch`` is below 0; StochasticWeightAveraging is there, which wipes the estimates to measure
            them in training; WeightAveraging is there, and buffers of a layer would be missing in the average.
        TypeError: a part of the model is compiled or wrapped, so that its modules cannot be exchanged.
        NothingDoneError: no layer can be frozen.

    Warns:
        UserWarning: a layer cannot be frozen; the model has no batch norm.

    Source: Wu & Johnson 2021 (arXiv 2105.07576), section 3.
    """

    def __init__(self, after_epoch: int, *, where: Where | None = None, example: Batch = None) -> None:
        super().__init__()
        self._freeze = Freeze("FreezeStatistics", after_epoch, where, example)
        self._was_frozen = False

    @property
    def is_frozen(self) -> bool:
        """Whether the statistics are frozen now."""
        return self._freeze.is_frozen

    def state_dict(self) -> dict[str, Any]:
        """Give whether they are frozen."""
        return {"frozen": self.is_frozen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember whether they were frozen."""
        self._was_frozen = state_dict["frozen"]

    def on_fit_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Refuse what would fail later."""
        same = self._freeze.try_(pl_module)
        for each in trainer.callbacks:
            if is_a(each, "StochasticWeightAveraging"):
                raise ValueError(
                    "FreezeStatistics: nothing else may reset the statistics, got StochasticWeightAveraging. Use "
                    "WeightAveraging."
                )
            if is_a(each, "WeightAveraging") and not same:
                raise ValueError(
                    f"FreezeStatistics: {type(each).__name__} matches buffers by their position, got layers with more "
                    "buffers than batch norm's three. Leave them out with where=...."
                )

    def on_train_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Freeze where a fit resumes, be it in the middle of an epoch."""
        self._freeze.freeze_from(pl_module, float("inf") if self._was_frozen else trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Freeze where it is time."""
        self._freeze.freeze_from(pl_module, trainer.current_epoch)

    def on_exception(self, trainer: Trainer, pl_module: nn.Module, exception: BaseException) -> None:
        """Put the layers back."""
        self._end()

    def teardown(self, trainer: Trainer, pl_module: nn.Module, stage: str) -> None:
        """Put the layers back."""
        if stage == "fit":
            self._end()

    def _end(self) -> None:
        self._freeze.let_go()
        self._was_frozen = False

"""Lightning callback that freezes running statistics."""

from __future__ import annotations

from typing import Any

from torch import nn

from steadynorm.integrations.freezing import Freeze
from steadynorm.integrations.lightning.base import Callback, Trainer, is_a
from steadynorm.surgery.batches import Batch
from steadynorm.surgery.named_modules import Where

__all__ = ["FreezeStatistics"]


class FreezeStatistics(Callback):
    """Freeze the running statistics after some epochs; from then on training normalizes by them too.

    No batch updates the running statistics any more, whatever ``.train()`` does. Weight and bias are still learned.
    When the fit ends, also by an error, the layers become what they were, with the frozen running statistics.
    Checkpoints have the same keys throughout; resuming from one freezes where that fit had. See
    :func:`steadynorm.surgery.freeze_`.

    Args:
        after_epoch: number of epochs to train before; 0 freezes from the start.
        where: (qualified name, module) -> whether to freeze it; None takes all.
        example: a batch to run the model on, if a synchronized layer does not say whether it is 1d, 2d or 3d.

    Raises:
        ValueError: ``after_epoch`` is below 0; StochasticWeightAveraging is used, which resets the running statistics
            to measure them in training; WeightAveraging is used, whose average would lack buffers of a layer.
        TypeError: a part of the model is compiled or wrapped, so its modules cannot be replaced.
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
        """Whether the running statistics are frozen now."""
        return self._freeze.is_frozen

    def state_dict(self) -> dict[str, Any]:
        """Return whether the statistics are frozen."""
        return {"frozen": self.is_frozen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore whether the statistics are frozen."""
        self._was_frozen = state_dict["frozen"]

    def on_fit_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Refuse combinations that would fail later."""
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
        """Freeze when a fit resumes, also in the middle of an epoch."""
        self._freeze.freeze_from(pl_module, float("inf") if self._was_frozen else trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Freeze when the epochs are over."""
        self._freeze.freeze_from(pl_module, trainer.current_epoch)

    def on_exception(self, trainer: Trainer, pl_module: nn.Module, exception: BaseException) -> None:
        """Restore the layers."""
        self._end()

    def teardown(self, trainer: Trainer, pl_module: nn.Module, stage: str) -> None:
        """Restore the layers."""
        if stage == "fit":
            self._end()

    def _end(self) -> None:
        self._freeze.let_go()
        self._was_frozen = False

"""Lightning callback that recalibrates running statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Unpack

from torch import nn

from steadynorm.integrations.lightning.base import Callback, Trainer, is_a
from steadynorm.integrations.recalibration import NUMBER, Options, Recalibration
from steadynorm.surgery.batches import Forward, feed
from steadynorm.surgery.named_modules import NamedModule, batch_norms_of

__all__ = ["RecalibrateCallback"]

_SHARDED = ("DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy")


class RecalibrateCallback(Callback):
    """Recalibrate the running statistics before each validation and at the end of the fit ("precise batch norm").

    Validation then normalizes by the statistics of the current weights, not by an average over earlier steps; see
    :func:`steadynorm.surgery.recalibrate_`. The new statistics are kept: training continues from them, and a checkpoint
    saved after the validation has them. Batch norm does not use them in training, so the weights are those of a fit
    without this callback, bit for bit.

    The batches are the first ones of the training loader, fetched, transferred and converted as for a training step,
    and passed to the LightningModule's ``forward``. Loader and random number generators are left unchanged. All ranks'
    batches count together. Lightning's sanity check before training is skipped. Callbacks that average weights must
    come before this one, so that the statistics are those of the average.

    Args:
        batches: a list or loader to use instead of the training loader, for this rank.
        number: largest number of batches per rank, at most those of an epoch. Each is run once per pass.
        every_n_epochs: None recalibrates before every validation; n only in every n-th epoch, before its validations,
            or at its end if it has none.
        sanity_check: whether to recalibrate before the sanity check too.
        forward: (model, batch) -> output: how to run the model on a batch. None passes
            :func:`steadynorm.surgery.batches.feed`'s choice of the batch to ``forward``.
        options: ``where``, ``prior``, ``tolerance``, ``settled`` and ``passes`` of
            :func:`steadynorm.surgery.recalibrate_`; ``settled`` is 0.01 standard deviations by default, which a few
            passes reach.

    Raises:
        TypeError: ``batches`` can be iterated only once; the LightningModule has no ``forward`` and none is given; its
            parameters are sharded.
        ValueError: numbers below 1; a callback that averages weights comes after this one; several training loaders, or
            one of a stream, without ``batches``.

    Warns:
        UserWarning: no layer could be recalibrated, once per reason.

    Source: Wu & Johnson 2021 (arXiv 2105.07576).
    """

    def __init__(
        self,
        batches: Iterable[Any] | None = None,
        *,
        number: int = NUMBER,
        every_n_epochs: int | None = None,
        sanity_check: bool = False,
        forward: Forward | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"RecalibrateCallback: every_n_epochs must be at least 1, got {every_n_epochs}.")
        self._work = Recalibration("RecalibrateCallback", batches, number, forward, options)
        self._every, self._sanity_check = every_n_epochs, sanity_check
        self._epoch = -1
        self._norms: list[NamedModule] | None = None
        self._still: frozenset[str] = frozenset()

    @property
    def change(self) -> Any:  # noqa: ANN401 (a Change or None)
        """The last :class:`steadynorm.surgery.Change`; None if nothing was recalibrated yet."""
        return self._work.change

    def state_dict(self) -> dict[str, Any]:
        """Return the last epoch that was recalibrated."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._epoch = state_dict["epoch"]

    def on_fit_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Refuse combinations that would fail later."""
        _check_order(self, trainer)
        strategy = type(trainer.strategy).__name__
        if strategy in _SHARDED:
            raise TypeError(f"RecalibrateCallback: every rank must hold the whole model, got {strategy}.")
        if self._work.forward is None and not _has_forward(pl_module):
            raise TypeError(
                f"RecalibrateCallback: {type(pl_module).__name__} must have a forward, got none. Define it, or say "
                "how to run the model: forward=lambda model, batch: ...."
            )

    def on_train_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Record which batch norms are in evaluation mode while training."""
        self._norms = None
        self._see(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Clear the recorded layers: other callbacks may replace them."""
        self._norms = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: nn.Module, *_: object) -> None:
        """Record which batch norms are in evaluation mode again, before a validation sets all to it."""
        self._see(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Recalibrate before a validation of the fit."""
        if trainer.state.fn != "fit":
            return
        due = self._sanity_check if trainer.sanity_checking else self._is_due(trainer)
        if due:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Recalibrate at the end of a counted epoch without validation."""
        if self._every is not None and self._is_due(trainer) and self._epoch != trainer.current_epoch:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Recalibrate for the final weights."""
        self._measure(trainer, pl_module)

    def _see(self, pl_module: nn.Module) -> None:
        if self._norms is None:
            self._norms = batch_norms_of(pl_module)
        self._still = frozenset(each.name for each in self._norms if not each.module.training)

    def _is_due(self, trainer: Trainer) -> bool:
        return self._every is None or (trainer.current_epoch + 1) % self._every == 0

    def _measure(self, trainer: Trainer, pl_module: nn.Module) -> None:
        loader = self._loader_of(trainer)
        with _as_in_training(trainer, pl_module, self._still):
            self._work.run(pl_module, loader, _forward_of(trainer), most=trainer.num_training_batches)
        self._epoch = trainer.current_epoch

    def _loader_of(self, trainer: Trainer) -> Any:  # noqa: ANN401 (any iterable)
        loader = trainer.train_dataloader
        if loader is None and trainer.sanity_checking:
            trainer.fit_loop.setup_data()
            loader = trainer.train_dataloader
        if self._work.needs_loader and (loader is None or isinstance(loader, dict | list | tuple)):
            found = "none" if loader is None else f"{len(loader)}"
            raise ValueError(f"RecalibrateCallback: there must be one training loader, got {found}. Give batches=.")
        return loader


def _check_order(callback: object, trainer: Trainer) -> None:
    """Raise ValueError if weights are averaged after this callback."""
    at = trainer.callbacks.index(callback)
    for each in trainer.callbacks[at + 1 :]:
        if is_a(each, "WeightAveraging") or is_a(each, "StochasticWeightAveraging"):
            raise ValueError(
                f"RecalibrateCallback: it must come after {type(each).__name__} in the list of callbacks, to measure "
                "the average's statistics, got it before."
            )


def _has_forward(pl_module: nn.Module) -> bool:
    """Return whether a class of the user defines a forward."""
    own = (cls for cls in type(pl_module).__mro__ if cls.__module__.split(".")[0] not in _PACKAGES)
    return "forward" in vars(pl_module) or any("forward" in vars(cls) for cls in own)


_PACKAGES = ("lightning", "pytorch_lightning", "torch")


@contextmanager
def _as_in_training(trainer: Trainer, model: nn.Module, still: frozenset[str]) -> Iterator[None]:
    """Set Lightning's state and the batch norms' modes as in a training step, to use training batches."""
    stage, modes = trainer.state.stage, {module: module.training for module in model.modules()}
    trainer.training = True
    model.training = True
    for named in batch_norms_of(model):
        named.module.training = named.name not in still
    try:
        yield
    finally:
        trainer.state.stage = stage
        for module, mode in modes.items():
            module.training = mode


def _forward_of(trainer: Trainer) -> Forward:
    """Return a function that transfers and runs a batch as in a training step."""

    def forward(model: nn.Module, batch: Any) -> Any:  # noqa: ANN401 (any batch, any output)
        batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        with trainer.precision_plugin.forward_context():
            return feed(model, batch)

    return forward

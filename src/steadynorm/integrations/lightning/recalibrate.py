"""Precise statistics within a fit of Lightning's."""

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
    """Measure the running estimates again before each validation and at the end of the fit ("precise batch norm").

    Afterwards evaluation normalizes by the statistics that the weights have now, and not by an average over those
    that they had in the last steps; see :func:`steadynorm.surgery.recalibrate_`. The numbers stay: training goes on
    from them, and a checkpoint that is saved after the validation has what was validated. Batch norm's training does
    not read them, so its weights are, bit for bit, those of a fit without this callback.

    The batches are the first ones of the training loader, fetched and transferred as for a training step, in the same
    precision, and given to the LightningModule's ``forward``. Neither the loader nor random numbers take notice. Over
    ranks all batches count together. The validation that Lightning runs before training, as a check, is left out.

    It stands behind Lightning's callbacks that average weights, so that the statistics are the average's.

    Args:
        batches: a list or loader to take in place of the training loader, of this rank.
        number: of batches at most, on each rank, and at most as many as an epoch has. Each is run once a pass.
        every_n_epochs: None measures before every validation. n measures in every n-th epoch only: before its
            validations, and at its end where it has none.
        sanity_check: whether to measure before the check as well.
        forward: model and batch -> anything: how to run the model. None is its ``forward`` on what
            :func:`steadynorm.surgery.batches.feed` takes of the batch.
        options: ``where``, ``prior``, ``tolerance``, ``settled`` and ``passes`` of ``recalibrate_``; ``settled``
            is 0.01 standard deviations here, which few passes reach.

    Raises:
        TypeError: ``batches`` can be gone through once only; the LightningModule has no ``forward`` and none is given;
            its parameters are sharded.
        ValueError: numbers below 1; a callback that averages weights comes after this one; several training loaders,
            or one of a stream, and no ``batches``.

    Warns:
        UserWarning: no layer could be measured, once for each reason.

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
        """The last measurement's :class:`steadynorm.surgery.Change`; None where nothing was measured."""
        return self._work.change

    def state_dict(self) -> dict[str, Any]:
        """Give the last epoch that was measured in."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self._epoch = state_dict["epoch"]

    def on_fit_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Refuse what would fail later."""
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
        """See which batch norms evaluate in training."""
        self._norms = None
        self._see(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Forget them: other callbacks may put others there."""
        self._norms = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: nn.Module, *_: object) -> None:
        """See again which evaluate, before a validation lets all of them do so."""
        self._see(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Measure before the validation of a fit."""
        if trainer.state.fn != "fit":
            return
        due = self._sanity_check if trainer.sanity_checking else self._is_due(trainer)
        if due:
            self._measure(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Measure in an epoch without validation where epochs are counted."""
        if self._every is not None and self._is_due(trainer) and self._epoch != trainer.current_epoch:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: nn.Module) -> None:
        """Measure for the weights that the fit ends with."""
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
    """Raise ValueError where weights are averaged after this callback."""
    at = trainer.callbacks.index(callback)
    for each in trainer.callbacks[at + 1 :]:
        if is_a(each, "WeightAveraging") or is_a(each, "StochasticWeightAveraging"):
            raise ValueError(
                f"RecalibrateCallback: it must come after {type(each).__name__} in the list of callbacks, to measure "
                "the average's statistics, got it before."
            )


def _has_forward(pl_module: nn.Module) -> bool:
    """Tell whether a class of the user's defines a forward."""
    own = (cls for cls in type(pl_module).__mro__ if cls.__module__.split(".")[0] not in _PACKAGES)
    return "forward" in vars(pl_module) or any("forward" in vars(cls) for cls in own)


_PACKAGES = ("lightning", "pytorch_lightning", "torch")


@contextmanager
def _as_in_training(trainer: Trainer, model: nn.Module, still: frozenset[str]) -> Iterator[None]:
    """Let Lightning and the modes of the batch norms be as in a training step, whose batches are taken."""
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
    """Give how a batch is transferred and run in a training step."""

    def forward(model: nn.Module, batch: Any) -> Any:  # noqa: ANN401 (any batch, any output)
        batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        with trainer.precision_plugin.forward_context():
            return feed(model, batch)

    return forward

"""Trainer callback that recalibrates running statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from steadynorm.integrations.recalibration import NUMBER, Options, Recalibration
from steadynorm.integrations.trainer.base import Arguments, Control, Part, State, TrainerCallback, epoch_of
from steadynorm.surgery.batches import Forward, feed
from steadynorm.surgery.kinds import kind_of
from steadynorm.surgery.named_modules import batch_norms_of

__all__ = ["RecalibrateCallback"]


class RecalibrateCallback(TrainerCallback):
    """Recalibrate the running statistics before each evaluation and at the end of the training ("precise batch norm").

    The new statistics are kept: a checkpoint saved after the evaluation has them. The weights are those of a training
    without this callback, bit for bit; see :func:`steadynorm.surgery.recalibrate_`. The batches are the first ones of
    the training loader, passed to the model by name; all ranks' batches count together. With ``eval_on_start`` the
    first evaluation is of the model as it is; with ``load_best_model_at_end`` the best model is recalibrated at the
    end.

    Args:
        batches: a list or loader to use instead of the training loader, for this rank.
        number: largest number of batches per rank. Each is run once per pass.
        every_n_epochs: None recalibrates before every evaluation; n only in every n-th epoch, before its evaluations,
            or at its end if it has none.
        forward: (model, batch) -> output: how to run the model on a batch. None is
            :func:`steadynorm.surgery.batches.feed`.
        options: ``where``, ``prior``, ``tolerance``, ``settled`` and ``passes`` of
            :func:`steadynorm.surgery.recalibrate_`; ``settled`` is 0.01 standard deviations by default, which a few
            passes reach.

    Raises:
        TypeError: ``batches`` can be iterated only once.
        ValueError: numbers below 1; the training loader is one of a stream, and no ``batches`` are given.

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
        forward: Forward | None = None,
        **options: Unpack[Options],
    ) -> None:
        if every_n_epochs is not None and every_n_epochs < 1:
            raise ValueError(f"RecalibrateCallback: every_n_epochs must be at least 1, got {every_n_epochs}.")
        self._work = Recalibration("RecalibrateCallback", batches, number, forward, options)
        self._every, self._epoch = every_n_epochs, 0
        self._frozen: frozenset[str] = frozenset()

    @property
    def change(self) -> Any:  # noqa: ANN401 (a Change or None)
        """The last :class:`steadynorm.surgery.Change`; None if nothing was recalibrated yet."""
        return self._work.change

    def on_train_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Start counting."""
        self._epoch = 0

    def on_step_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Recalibrate before an evaluation."""
        if control.should_evaluate and self._is_due(state):
            self._measure(state, parts)

    def on_epoch_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Recalibrate before an evaluation, and at the end of a counted epoch without one."""
        norms = batch_norms_of(parts["model"])
        self._frozen = frozenset(each.name for each in norms if kind_of(each.module)[0].is_frozen)
        counted = self._every is not None and self._epoch != epoch_of(state)
        if (control.should_evaluate or counted) and self._is_due(state):
            self._measure(state, parts)

    def on_train_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Recalibrate for the final weights; layers frozen during the training are kept."""
        self._measure(state, parts, but=self._frozen)

    def _is_due(self, state: State) -> bool:
        return self._every is None or epoch_of(state) % self._every == 0

    def _measure(self, state: State, parts: Mapping[str, Any], but: frozenset[str] = frozenset()) -> None:
        self._work.run(parts["model"], parts["train_dataloader"], feed, but=but)
        self._epoch = epoch_of(state)

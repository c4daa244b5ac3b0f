"""Precise statistics within a training of transformers' Trainer."""

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
    """Measure the running estimates again before each evaluation and at the end of the training.

    The numbers stay: a checkpoint that is saved after the evaluation has what was evaluated. The weights are, bit for
    bit, those of a training without this callback; see :func:`steadynorm.surgery.recalibrate_` and
    :class:`steadynorm.integrations.lightning.RecalibrateCallback`. The batches are the first ones of the training
    loader, given to the model by name; over ranks all count together. ``eval_on_start`` evaluates the model as it is;
    with ``load_best_model_at_end`` the end is measured for the best one.

    Args:
        batches: a list or loader to take in place of the training loader, of this rank.
        number: of batches at most, on each rank. Each is run once a pass.
        every_n_epochs: None measures before every evaluation. n measures in every n-th epoch only: before its
            evaluations, and at its end where it has none.
        forward: model and batch -> anything: how to run the model; None is :func:`steadynorm.surgery.batches.feed`.
        options: ``where``, ``prior``, ``tolerance``, ``settled`` and ``passes`` of ``recalibrate_``; ``settled``
            is 0.01 standard deviations here, which few passes reach.

    Raises:
        TypeError: ``batches`` can be gone through once only.
        ValueError: numbers below 1; the training loader is one of a stream, and no ``batches`` are given.

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
        """The last measurement's :class:`steadynorm.surgery.Change`; None where nothing was measured."""
        return self._work.change

    def on_train_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Begin to count."""
        self._epoch = 0

    def on_step_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Measure before an evaluation."""
        if control.should_evaluate and self._is_due(state):
            self._measure(state, parts)

    def on_epoch_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Measure before an evaluation, and where epochs are counted and there was none."""
        norms = batch_norms_of(parts["model"])
        self._frozen = frozenset(each.name for each in norms if kind_of(each.module)[0].is_frozen)
        counted = self._every is not None and self._epoch != epoch_of(state)
        if (control.should_evaluate or counted) and self._is_due(state):
            self._measure(state, parts)

    def on_train_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Measure for the weights that the training ends with; what was frozen in it stays."""
        self._measure(state, parts, but=self._frozen)

    def _is_due(self, state: State) -> bool:
        return self._every is None or epoch_of(state) % self._every == 0

    def _measure(self, state: State, parts: Mapping[str, Any], but: frozenset[str] = frozenset()) -> None:
        self._work.run(parts["model"], parts["train_dataloader"], feed, but=but)
        self._epoch = epoch_of(state)

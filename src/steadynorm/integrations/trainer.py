"""Callbacks for the Trainer of Hugging Face's transformers, of the same names as those for Lightning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Unpack

from torch import Tensor, nn
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_callback import TrainerControl as Control
from transformers.trainer_callback import TrainerState as State
from transformers.training_args import TrainingArguments as Arguments

from steadynorm.integrations.freezing import Freeze
from steadynorm.integrations.loggers import PREFIX, log
from steadynorm.integrations.recalibration import NUMBER, Options, Recalibration
from steadynorm.surgery import readings_during, statistics_of
from steadynorm.surgery.batches import Batch, Forward, feed
from steadynorm.surgery.kinds import kind_of
from steadynorm.surgery.named_modules import Where, batch_norms_of

__all__ = ["FreezeStatistics", "ReadingsCallback", "RecalibrateCallback"]

Part = Any
"""Of the Trainer, by name: model, train_dataloader, and more."""


class RecalibrateCallback(TrainerCallback):
    """Measure the running estimates again before each evaluation and at the end of the training.

    The numbers stay: a checkpoint that is saved after the evaluation has what was evaluated. The weights are, bit for
    bit, those of a training without this callback; see :func:`steadynorm.surgery.recalibrate_` and
    :class:`steadynorm.integrations.lightning.RecalibrateCallback`. The batches are the first ones of the training
    loader, given to the model by name; over ranks all count together. ``eval_on_start`` evaluates the model as it is;
    with ``load_best_model_at_end`` the end is measured for the best one.

    Args:
        batches: a list or loader to take in place of the training loader, of this rank.
        number: of batches at most, on each rank. Each is run as often as there are passes, seven in a usual network.
        every_n_epochs: None measures before every evaluation. n measures in every n-th epoch only: before its
            evaluations, and at its end where it has none.
        forward: model and batch -> anything: how to run the model; None is :func:`steadynorm.surgery.batches.feed`.
        options: ``where``, ``prior``, ``tolerance``, ``settled`` and ``passes`` of ``recalibrate_``.

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
        counted = self._every is not None and self._epoch != _epoch_of(state)
        if (control.should_evaluate or counted) and self._is_due(state):
            self._measure(state, parts)

    def on_train_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Measure for the weights that the training ends with; what was frozen in it stays."""
        self._measure(state, parts, but=self._frozen)

    def _is_due(self, state: State) -> bool:
        return self._every is None or _epoch_of(state) % self._every == 0

    def _measure(self, state: State, parts: Mapping[str, Any], but: frozenset[str] = frozenset()) -> None:
        self._work.run(parts["model"], parts["train_dataloader"], feed, but=but)
        self._epoch = _epoch_of(state)


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
        self._freeze.freeze_from(parts["model"], _trained(state))

    def on_train_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Put the layers back."""
        self._freeze.let_go()


class ReadingsCallback(TrainerCallback):
    """Log what the norms are at: gates, renorm's r and d, momenta that self-tuned statistics chose, distances.

    See :func:`steadynorm.surgery.readings_during`. Every n-th step is read as it trains; of several batches in a step
    it is the mean. The first rank logs.

    Args:
        to: see :func:`steadynorm.integrations.loggers.log`.
        every_n_steps: steps from one reading to the next; None is the Trainer's ``logging_steps``.
        stored: running estimates to measure the distance from; None takes those with which this training begins or
            resumes.
        where: qualified name and module -> whether to read it; None takes all.
        prefix: before each name.

    Raises:
        ValueError: ``every_n_steps`` is below 1; ``stored`` has none of the layers.
    """

    def __init__(
        self,
        to: Any,  # noqa: ANN401 (as there)
        *,
        every_n_steps: int | None = None,
        stored: Mapping[str, Tensor] | None = None,
        where: Where | None = None,
        prefix: str = PREFIX,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"ReadingsCallback: every_n_steps must be at least 1, got {every_n_steps}.")
        self._to, self._every, self._given, self._where, self._prefix = to, every_n_steps, stored, where, prefix
        self._stored: Mapping[str, Tensor] = {}
        self._open: ExitStack | None = None
        self._readings: dict[str, float] = {}

    def on_train_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Remember the estimates that the training begins with."""
        self._open = None
        model: nn.Module = parts["model"]
        self._stored = statistics_of(model, where=self._where) if self._given is None else self._given

    def on_step_begin(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Begin to read where it is time."""
        every = self._every or state.logging_steps
        if (state.global_step + 1) % every == 0:
            self._open = ExitStack()
            reading = readings_during(parts["model"], self._stored or None, where=self._where)
            self._readings = self._open.enter_context(reading)

    def on_step_end(self, args: Arguments, state: State, control: Control, **parts: Part) -> None:
        """Log what was read."""
        if self._open is None:
            return
        self._open.close()
        self._open = None
        if state.is_world_process_zero:
            log(self._readings, state.global_step, to=self._to, prefix=self._prefix)


def _trained(state: State) -> float:
    """Give the epochs that have been trained, with their decimals, which come of a division."""
    return round(float(state.epoch or 0), 6)


def _epoch_of(state: State) -> int:
    """Give the number of the epoch that is being trained or has just been, from 1."""
    return math.ceil(_trained(state))

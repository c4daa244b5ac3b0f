"""Load the evidence that flags name besides the model: data, reference data, a checkpoint and an optimizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from steadynorm.checkup.config import DoctorConfig
from steadynorm.checkup.data import Sample, Wanted, load_sample
from steadynorm.deploy.source import trained_on
from steadynorm.doctor import accuracy, observe
from steadynorm.doctor.evidence import Evidence
from steadynorm.doctor.score import labels_of, logits_of
from steadynorm.lab.data import DATASETS
from steadynorm.lab.functions import call_function
from steadynorm.lab.weights import read_weights
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.reporting.progress import Display
from steadynorm.surgery.batches import evaluating, feed
from steadynorm.surgery.flow.trial import run

__all__ = ["Given", "in_dtype_of", "load_given", "tried"]

FLAGS = ("--checkpoint", "--checkpoint-key")


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """Everything that flags name besides the model.

    Args:
        config: the flags.
        sample: the data; None without data.
        reference: data that the model is known to be good on; None without them.
        checkpoint: the checkpoint that the model should equal; None without one.
        told: what was read, one sentence each.
    """

    config: DoctorConfig
    sample: Sample | None = None
    reference: Sample | None = None
    checkpoint: Mapping[str, Any] | None = None
    told: tuple[str, ...] = ()

    def observed(self, model: nn.Module, tell: Callable[[float], None] = lambda share: None) -> Evidence:
        """Examine a model.

        Args:
            model: the loaded model.
            tell: receives the completed fraction, in [0, 1], after each batch.

        Raises:
            UserError: the optimizer cannot be built, or the checkpoint is of another model.
        """
        optimizer = None if self.config.optimizer is None else _optimizer(self.config.optimizer, model)
        scored = self.sample is not None and self.sample.classes > 0
        runs = 0

        def forward(model: nn.Module, batch: Any) -> Any:  # noqa: ANN401 (as the loader and the model give them)
            nonlocal runs
            runs += 1
            tell(min(runs / self.runs, 1.0))
            return feed(model, batch)

        try:
            return observe(
                model,
                None if self.sample is None else list(self.sample.batches),
                forward=forward,
                reference=None if self.reference is None else list(self.reference.batches),
                metric=_metric if scored else None,
                checkpoint=self.checkpoint,
                optimizer=optimizer,
                accumulation=self.config.accumulation,
                world_size=self.config.world_size,
            )
        except ValueError as error:
            if self.checkpoint is None or "checkpoint" not in str(error):
                raise
            told = str(error).removeprefix("diagnose: ").rstrip(".")
            choice = " with --checkpoint-key" if "Choose one" in told else ""
            raise UserError(f"--checkpoint: {self.config.checkpoint}: {told}{choice}.") from error

    @property
    def runs(self) -> int:
        """Forwards of an examination without trials of single layers, including those on parts of a batch."""
        looked_at, known = (0 if each is None else len(each.batches) for each in (self.sample, self.reference))
        return 2 + 5 * looked_at // 2 + known


def load_given(config: DoctorConfig, model: nn.Module, display: Display) -> Given:
    """Read the files that flags name.

    Raises:
        UserError: a file cannot be read, or the model does not accept the data.
    """
    checkpoint = None
    if config.checkpoint is not None:
        checkpoint = read_weights(config.checkpoint, key=config.checkpoint_key, options=FLAGS)
    reference, known = _sample(config, "reference", model, display)
    if known:
        display.message(known)
    sample, told = _sample(config, "data", model, display)
    return Given(
        config=config,
        sample=sample,
        reference=reference,
        checkpoint=checkpoint,
        told=tuple(filter(None, (known, told))),
    )


def _sample(config: DoctorConfig, name: str, model: nn.Module, display: Display) -> tuple[Sample | None, str]:
    """Load data and describe them; drop labels on which accuracy would mean nothing."""
    data = getattr(config, name)
    if data is None:
        return None, ""
    named = any(each in DATASETS for each in (config.data, config.reference))
    wanted = Wanted(
        batch_size=config.batch_size,
        number=config.batches,
        seed=config.seed,
        mean=config.mean,
        std=config.std,
        input_size=config.input_size,
        data_dir=config.data_dir if data in DATASETS or not named else None,
        columns=config.columns,
        trained=None if config.source is None else trained_on(config.source),
    )
    sample = in_dtype_of(model, load_sample(data, wanted, display.message, flag=f"--{name}"))
    unscored = _why_unscored(sample, tried(model, sample, f"--{name}"))
    told = f"{name.capitalize()}: {sample.told}."
    return (
        (sample, told) if not unscored else (sample.without_labels(), f"{told} Accuracy is not measured: {unscored}.")
    )


def _metric(output: Any, batch: Any) -> float:  # noqa: ANN401 (as the model and the sample give them)
    """Return the accuracy; NaN if data or reference have no labels."""
    return accuracy(output, batch) if labels_of(batch) is not None else float("nan")


_metric.__name__ = accuracy.__name__  # by which findings call the score


def _optimizer(what: str, model: nn.Module) -> torch.optim.Optimizer:
    """Build a model's optimizer with the user's function.

    Raises:
        UserError: the function fails or returns no optimizer.
    """
    found = call_function(what, model)
    if not isinstance(found, torch.optim.Optimizer):
        raise UserError(f"--optimizer: {what}: must return a torch.optim.Optimizer, got {type(found).__name__}.")
    return found


def in_dtype_of(model: nn.Module, sample: Sample) -> Sample:
    """Cast the inputs to the dtype of the model's first floating-point parameter."""
    wanted = next((each.dtype for each in model.parameters() if each.is_floating_point()), torch.float32)

    def cast(x: Tensor) -> Tensor:
        return x.to(wanted) if x.is_floating_point() else x

    batches = tuple(cast(each) if isinstance(each, Tensor) else (cast(each[0]), each[1]) for each in sample.batches)
    return replace(sample, batches=batches)


def tried(model: nn.Module, sample: Sample, flag: str) -> Any:  # noqa: ANN401 (whatever a model gives)
    """Run the model on one batch, to report in one line if it does not accept the batch.

    Raises:
        UserError: the model fails on the batch.
    """
    batch = sample.batches[0]
    try:
        return run(model, batch, feed, within=evaluating(model))
    except Exception as error:  # a model's forward may raise anything
        x = batch if isinstance(batch, Tensor) else batch[0]
        size = " Give the size it was made for by --input-size." if x.dim() == 4 else ""
        if re.search(r"to have \d+ channels", str(error)):  # as torch's convolutions say it
            size = " Give data with as many channels."
        raise UserError(
            f"{flag}: the model failed on an input of shape {tuple(x.shape)} with {one_line(error)}.{size}"
        ) from error


def _why_unscored(sample: Sample, output: Any) -> str:  # noqa: ANN401 (whatever a model gives)
    """Say why accuracy is not measured; nothing if it is."""
    logits = logits_of(output)
    if sample.classes == 0:
        return "there are no labels"
    if logits is None or len(logits) != len(sample.batches[0][0]):
        return "the model gives no row of logits for each sample"
    if logits.shape[1] < sample.classes or min(int(labels.min()) for _, labels in sample.batches) < 0:
        return f"there are labels of {sample.classes} classes, and the model has {logits.shape[1]} outputs"
    return ""

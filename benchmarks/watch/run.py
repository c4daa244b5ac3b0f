"""Run a training with or without a watch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.doctor.training import Data
from benchmarks.watch.trainings import Batch, Training, batches_of
from steadynorm.doctor.watch import Event, Watch

__all__ = ["Arm", "Outcome", "run"]

Arm = Literal["off", "warn", "revert"]
SAMPLES = 1_000
"""Test samples that accuracies are measured on."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a training.

    Args:
        accuracies: step -> accuracy in evaluation after it, in per cent.
        events: of the watch.
        layers: that were watched.
    """

    accuracies: dict[int, float]
    events: Sequence[Event] = field(default_factory=tuple)
    layers: int = 0

    @property
    def last(self) -> float:
        """The accuracy at the end."""
        return self.accuracies[max(self.accuracies)]

    def mean(self, since: int, until: int) -> float:
        """Average the accuracies between two steps."""
        chosen = [each for step, each in self.accuracies.items() if since < step <= until]
        return sum(chosen) / len(chosen)


def run(
    training: Training,
    data: Data,
    seed: int,
    arm: Arm,
    *,
    disturb: Callable[[Iterable[Batch]], Iterable[Batch]] = lambda batches: batches,
    steps: int | None = None,
    every: int = 50,
    report: Callable[[str], object] = lambda line: None,
) -> Outcome:
    """Train, and measure the accuracy every so many steps.

    A step whose loss is not finite is skipped, as by loss scaling and many loops; its forward has run.

    Args:
        training: what is trained.
        data: samples.
        seed: of weights and order.
        arm: off trains without a watch.
        disturb: changes the batches.
        steps: number of steps; None takes the training's.
        every: steps between two measurements.
        report: receives events.
    """
    model, optimizer = training.make(seed)
    steps = steps or training.steps
    watch = None if arm == "off" else Watch(model, arm, on_event=lambda event: report(event.text))
    batches = iter(disturb(batches_of(training, data, seed)))
    accuracies = {}
    if watch is not None:
        watch.start()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = training.rate * training.schedule(step / steps)
        optimizer.zero_grad()
        finite = True
        for _ in range(training.accumulate):
            x, labels = next(batches)
            with torch.autocast("cpu", training.precision, enabled=training.precision != torch.float32):
                logits = model(x).float()
            loss = functional.cross_entropy(logits, labels) / training.accumulate
            finite &= bool(loss.isfinite())
            if finite:
                loss.backward()
        if finite:
            optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            accuracies[step + 1] = _accuracy(model, *(each[:SAMPLES] for each in data.test))
    if watch is None:
        return Outcome(accuracies=accuracies)
    watch.stop()
    return Outcome(accuracies=accuracies, events=watch.events, layers=len(watch.report().layers))


@torch.no_grad()
def _accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    right = torch.cat([model(x).argmax(1) for x in inputs.split(200)]) == labels
    for module, mode in modes:
        module.training = mode
    return 100 * float(right.double().mean())

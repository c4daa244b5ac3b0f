"""Watch the loss around the weights while networks train: along the gradient, with and without batch norm.

Question: why does batch norm help: is the loss smoother around the weights, its gradient more predictive, and is that
so because the inputs of the layers are steadier?

Expected (Santurkar et al. 2018, arXiv 1805.11604): with batch norm the loss varies less along the gradient, the
gradient changes less over a step, by almost two orders of magnitude, and its effective Lipschitz constant is smaller;
batch norm with noise behind it, whose outputs are as unsteady as can be, trains as well. Bjorck et al. 2018 (arXiv
1806.02375): without batch norm gradients are larger. All of these are in units of the weights, whose scale is free
in front of a normalization; so everything is measured a second time with steps in proportion to the weights.

Cost: a look takes a gradient for each step length and one more, always in float32: about two seconds for eight lengths
and 128 images on two cores, as much as twenty training steps in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.lab.cells import Measure, measure_cells
from steadynorm.lab.configuration import (
    TrainingConfig,
    check_arms,
    check_at_least,
    check_experiment,
    check_lists,
    check_training,
    flag,
    settings_of,
)
from steadynorm.lab.data import batches
from steadynorm.lab.experiment import Task, run_experiment
from steadynorm.lab.failure import UserError
from steadynorm.lab.gradient_norms import watched_weights
from steadynorm.lab.networks import build_network
from steadynorm.lab.noisy_batch_norm import NOISY, add_noise_
from steadynorm.lab.probe import Slope, norm_of, probe, slope
from steadynorm.lab.progress import Display
from steadynorm.lab.records import Factor, Measurement
from steadynorm.lab.training import Settings, autocast, evaluate, learning_rate, steps_per_epoch

__all__ = ["LandscapeConfig", "run"]


@dataclass(frozen=True, kw_only=True)
class LandscapeConfig(TrainingConfig):
    """Train the article's network with and without batch norm, look around on the way, and write a report.

    The first run needs no data: it trains on the embedded shapes. For photographs say --data cifar10, with --data-dir
    where the data set already lies on disk.
    """

    epochs: int = 5
    """Passes over the training images."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate is divided by ten."""
    arms: tuple[str, ...] = ("batch_norm", "noisy_batch_norm", "none")
    """Normalizations to compare: those of steadynorm compare, and noisy_batch_norm, whose outputs are shifted and
    scaled at random, anew at every step."""
    probe_every: int = 26
    """Training steps from one look around to the next; the first is at the initial weights."""
    rate_steps: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    """Steps along the gradient at which to look, in learning rates."""
    weight_steps: tuple[float, ...] = (0.0025, 0.005, 0.01, 0.02)
    """Steps along the gradient at which to look, as shares of the weights' norm."""


QUICK: dict[str, Any] = {"epochs": 5, "widths": (8, 16, 32), "batch_size": 64, "probe_every": 20}


def run(config: LandscapeConfig, display: Display) -> Path:
    """Run the experiment, or the rest of it; see :func:`steadynorm.lab.experiment.run_experiment`.

    Each (arm, seed) is a cell. Its measurements, quantity by quantity:

    - after an epoch: ``train_loss``, ``val_loss``, ``val_accuracy``;
    - at a look: ``loss``, ``gradient_norm`` of all parameters, ``weight_norm`` of convolutions and linear layers,
      ``learning_rate``, and in bfloat16 ``rounding``: the l2 distance of that gradient from the one in float32,
      relative to it;
    - at a look, ``gradient_norm`` and ``weight_norm`` of each convolution and linear layer, as subjects;
    - at a look, with subjects ``rate 0.5`` and ``weights 0.01`` for the step lengths: ``eta``, ``loss``, ``change``,
      ``cosine`` and ``smoothness`` of a :class:`steadynorm.lab.probe.Point`;
    - ``diverged``, once, at the step whose loss was not finite.
    """
    return run_experiment("landscape", config, display, quick=QUICK, check=_check, work=_work)


def _work(task: Task[LandscapeConfig]) -> None:
    grid: list[dict[str, Factor]] = [
        {"arm": arm, "seed": seed} for seed in task.config.seeds for arm in task.config.arms
    ]
    measure_cells(grid, _measure, task)


def _measure(task: Task[LandscapeConfig]) -> Measure:
    """Make what trains the network of a cell and looks around on the way."""

    def measure(factors: dict[str, Factor], advance: Callable[[float], None]) -> Iterator[Measurement]:
        return _Cell.start(task, str(factors["arm"]), int(factors["seed"])).measure(advance)

    return measure


@dataclass(frozen=True)
class _Cell:
    """A network while it trains and is looked at."""

    task: Task[LandscapeConfig]
    settings: Settings
    seed: int
    model: nn.Module
    optimizer: torch.optim.SGD

    @classmethod
    def start(cls, task: Task[LandscapeConfig], arm: str, seed: int) -> _Cell:
        """Build the network with its initial weights."""
        config, settings = task.config, settings_of(task.config, task.record)
        torch.manual_seed(seed)
        model = build_network(
            config.network,
            arm="batch_norm" if arm == NOISY else arm,
            depth=config.depth,
            widths=config.widths,
            classes=len(task.dataset.classes),
            seed=seed,
            batches=config.epochs * steps_per_epoch(task.dataset.train, settings),
        )
        if arm == NOISY:
            add_noise_(model)
        model.to(settings.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(
            model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        return cls(task, settings, seed, model.train(), optimizer)

    def measure(self, advance: Callable[[float], None]) -> Iterator[Measurement]:
        """Train to the last epoch, or to a loss that is not finite, and give what is seen on the way."""
        steps, epochs = steps_per_epoch(self.task.dataset.train, self.settings), self.task.config.epochs
        for epoch in range(1, epochs + 1):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.task.config.lr, self.settings, epoch=epoch)
            losses = []
            for step, (x, labels) in enumerate(self._batches(epoch), start=(epoch - 1) * steps):
                if step % self.task.config.probe_every == 0:
                    yield from self._look(x, labels, step)
                losses.append(self._step(x, labels))
                if not math.isfinite(losses[-1]):
                    yield Measurement(step=step + 1, quantity="diverged", value=step + 1)
                    return
                advance((step + 1) / (steps * epochs))
            val_loss, val_accuracy = evaluate(
                self.model, self.task.dataset.validation, self.task.dataset, self.settings
            )
            found = {"train_loss": sum(losses) / steps, "val_loss": val_loss, "val_accuracy": val_accuracy}
            yield from _rows("", epoch * steps, found)

    def _step(self, x: Tensor, labels: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self._loss(self.model, x, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def _loss(self, model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        with autocast(self.settings):
            logits = model(x).float()
        return F.cross_entropy(logits, labels)

    def _look(self, x: Tensor, labels: Tensor, step: int) -> Iterator[Measurement]:
        """Look around on the batch that the next step is taken on, in training mode; in float32, whatever trains."""

        def loss(model: nn.Module) -> Tensor:
            return F.cross_entropy(model(x), labels)

        here, weights, rate = slope(self.model, loss), watched_weights(self.model), self.optimizer.param_groups[0]["lr"]
        weight_norm = norm_of(weights.values())
        found = {"loss": here.loss, "gradient_norm": here.norm, "weight_norm": weight_norm, "learning_rate": rate}
        if self.settings.precision != "fp32":
            rounded = slope(self.model, lambda model: self._loss(model, x, labels))
            found["rounding"] = _distance(rounded, here) / here.norm
        yield from _rows("", step, found)
        for name, weight in weights.items():
            norms = {"gradient_norm": norm_of([here.gradient[f"{name}.weight"]]), "weight_norm": norm_of([weight])}
            yield from _rows(name, step, norms)
        etas = {f"rate {length!r}": length * rate for length in self.task.config.rate_steps}
        etas |= {
            f"weights {length!r}": length * weight_norm / here.norm if here.norm else math.nan
            for length in self.task.config.weight_steps
        }
        points = probe(self.model, loss, here, etas=tuple(etas.values()))
        for subject, point in zip(etas, points, strict=True):
            yield from _rows(subject, step, vars(point))

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(
            self.task.dataset.train,
            dataset=self.task.dataset,
            batch_size=self.settings.batch_size,
            seed=self.seed,
            epoch=epoch,
            augment=self.settings.augment,
            device=self.settings.device,
        )


def _distance(first: Slope, second: Slope) -> float:
    return norm_of(first.gradient[name] - one for name, one in second.gradient.items())


def _rows(subject: str, step: int, values: dict[str, float]) -> Iterator[Measurement]:
    for quantity, value in values.items():
        yield Measurement(subject=subject, step=step, quantity=quantity, value=value)


def _check(config: LandscapeConfig) -> None:
    check_arms([arm for arm in config.arms if arm != NOISY])
    check_lists(config, ("arms", "rate_steps", "weight_steps"))
    for name in ("rate_steps", "weight_steps"):
        lengths = getattr(config, name)
        if len(lengths) < 2 or not all(0 < length < math.inf for length in lengths):
            raise UserError(
                f"{flag(name)}: two or more positive numbers are needed, got {' '.join(map(str, lengths))}."
            )
    check_experiment(config)
    check_at_least(config, (("batch_size", 2), ("probe_every", 1)))
    check_training(config)

"""Train a network: its epochs and their steps."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steadynorm.lab.arms import arm_label, parse_arm
from steadynorm.lab.compiling import compiled, failure_explained
from steadynorm.lab.data import Dataset, batches, take
from steadynorm.lab.evaluation import evaluated
from steadynorm.lab.functions import line_of
from steadynorm.lab.gradient_norms import gradient_norms, layer_gradients, percentiles, watched_weights
from steadynorm.lab.networks import build_network, zero_last_gamma_
from steadynorm.lab.networks.given import is_given
from steadynorm.lab.optimization import learning_rate, make_optimizer, training_loss
from steadynorm.lab.settings import Settings, autocast, steps_per_epoch
from steadynorm.lab.workers import (
    average_gradients_,
    mean_over_workers,
    number_of_workers,
    sum_over_workers,
    sync_buffers_,
    worker,
)
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.reporting.numbers import number
from steadynorm.reporting.records import Factors, Measurement
from steadynorm.surgery import readings_during, readings_of, statistics_of
from steadynorm.surgery.named_modules import batch_norms_of

__all__ = ["Trainer"]

STEPS_BETWEEN_CHECKS = 16  # reading the loss waits for the device; most steps do not read it


@dataclass(frozen=True)
class _Steps:
    """Measurements of the steps of an epoch, on the CPU; one entry or row per step."""

    losses: Tensor
    hits: int
    images: int
    readings: Mapping[str, float]
    """Readings of the norms in the last step."""
    gradient_norms: Tensor
    """Shape (steps, number of watched weights + 1); the last column is for all parameters together."""
    seconds: float

    @property
    def diverged_at(self) -> int | None:
        """First step, counted from 0, whose loss is not finite."""
        bad = (~self.losses.isfinite()).nonzero()
        return int(bad[0]) if len(bad) else None


@dataclass(frozen=True)
class Trainer:
    """A network in training."""

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    """The model, or its compiled form, which has the same parameters."""
    optimizer: torch.optim.Optimizer
    settings: Settings
    dataset: Dataset
    factors: Factors
    advance: Callable[[float, str], None]

    @classmethod
    def start(
        cls,
        factors: Factors,
        settings: Settings,
        dataset: Dataset,
        advance: Callable[[float, str], None] = lambda share, text: None,
    ) -> Trainer:
        """Build the network with its initial weights."""
        torch.manual_seed(factors["seed"])
        model = build_network(
            settings.network,
            arm=factors["arm"],
            depth=settings.depth,
            widths=settings.widths,
            classes=len(dataset.classes),
            channels=dataset.channels,
            image_size=dataset.image_size,
            seed=factors["seed"],
            update_every=settings.accumulate,
            batches=factors["epochs"] * steps_per_epoch(dataset.train, settings) * settings.accumulate,
        )
        if settings.zero_last_gamma:
            zero_last_gamma_(model)
        model.to(settings.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(model, settings, lr=factors["lr"])
        forward = compiled(model) if settings.compile else model
        return cls(model, forward, optimizer, settings, dataset, factors, advance)

    def epoch(self, number: int) -> tuple[list[Measurement], Mapping[str, float]]:
        """Train and validate once.

        Returns:
            the measurements, or only the loss if it is not finite; and readings of the norms.
        """
        start = time.perf_counter()
        steps = self.steps(number)
        if steps.diverged_at is not None:
            before = (number - 1) * steps_per_epoch(self.dataset.train, self.settings)
            return [Measurement(step=before + steps.diverged_at + 1, quantity="diverged", value=1.0)], {}
        return list(self._measured(number, steps, start)), steps.readings

    def _measured(self, number: int, steps: _Steps, start: float) -> Iterator[Measurement]:
        """Validate after the steps of an epoch, and return its measurements."""
        sync_buffers_(self.model)
        val_loss, val_accuracy = self._validate()
        whole = steps.gradient_norms[:, -1]
        low, high = percentiles(whole)
        found = {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": steps.losses.mean().item(),
            "train_accuracy": steps.hits / steps.images,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "grad_norm_mean": whole.mean().item(),
            "grad_norm_p5": low.item(),
            "grad_norm_p95": high.item(),
            "images_per_second": steps.images / steps.seconds,
            "seconds": time.perf_counter() - start,
        }
        for name, value in found.items():
            yield Measurement(step=number, quantity=name, value=value)
        yield from layer_gradients(self.model, steps.gradient_norms, epoch=number)

    def steps(self, epoch: int) -> _Steps:
        """Take the epoch's steps; stop early if the loss is not finite."""
        self.model.train()
        epochs = self.factors["epochs"]
        if epoch > epochs - self.settings.freeze_last:
            for named in batch_norms_of(self.model):
                named.module.eval()
        device, watched = self.settings.device, list(watched_weights(self.model).values())
        total = steps_per_epoch(self.dataset.train, self.settings)
        losses = torch.zeros(total, device=device)
        norms = torch.zeros(total, len(watched) + 1, device=device)
        hits = torch.zeros((), dtype=torch.int64, device=device)
        images = done = looked = 0
        readings: Mapping[str, float] = {}
        stored = _statistics(self.model)
        batches = self.batches(epoch, part=(worker(), number_of_workers()))
        start = time.perf_counter()
        for group in itertools.islice(_groups(batches, self.settings.accumulate), total):
            self.set_rate_((epoch - 1) * total + done)
            self.optimizer.zero_grad()
            with self._reading(stored) if done == total - 1 else contextlib.nullcontext(readings) as readings:
                losses[done], right, count = self._add_gradients(group)
            hits += right
            images += count
            average_gradients_(self.model)
            norms[done] = gradient_norms(self.model, watched)
            self.optimizer.step()
            done += 1
            look = done % STEPS_BETWEEN_CHECKS == 0 or done == total
            if look:
                losses[looked:done] = mean_over_workers(losses[looked:done])
                looked = done
            text = f"epoch {epoch}/{epochs}, loss {number(losses[done - 1].item())}" if look else ""
            self.advance((epoch - 1 + done / total) / epochs, text)
            if look and not losses[:done].isfinite().all():
                break
        seconds = time.perf_counter() - start
        hits, shown = sum_over_workers(hits, torch.tensor(images, device=device))
        return _Steps(losses[:done].cpu(), int(hits), int(shown), readings, norms[:done].cpu(), seconds)

    def _add_gradients(self, group: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, int]:
        """Add the mean gradients of a step's batches; return mean loss, number of hits and number of images."""
        mean = torch.zeros((), device=self.settings.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.settings.device)
        for x, labels in group:
            with failure_explained(self.settings):
                logits = self._logits(x)
                loss = training_loss(logits, labels, self.settings) / len(group)
                loss.backward()  # type: ignore[no-untyped-call]
            mean += loss.detach()
            hits += (logits.argmax(1) == labels).sum()
        return mean, hits, sum(len(labels) for _, labels in group)

    @contextlib.contextmanager
    def _reading(self, stored: Mapping[str, Tensor]) -> Iterator[dict[str, float]]:
        """Read the norms during the forwards; of compiled ones, only readings that need no batch."""
        if not self.settings.compile:
            with readings_during(self.model, stored or None) as readings:
                yield readings
            return
        found: dict[str, float] = {}
        yield found
        found |= readings_of(self.model, stored or None)

    def set_rate_(self, done: int) -> None:
        """Set the optimizer's learning rate for the step after ``done`` others."""
        steps, epochs = steps_per_epoch(self.dataset.train, self.settings), self.factors["epochs"]
        rate = learning_rate(self.factors["lr"], self.settings, done=done, steps=steps, epochs=epochs)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate

    def _logits(self, x: Tensor) -> Tensor:
        """Run the network; report a failure of the user's code in one line.

        Raises:
            UserError: the network fails.
        """
        try:
            with autocast(self.settings):
                return self.forward(x).float()
        except Exception as error:
            network, arm = self.settings.network, self.factors["arm"]
            is_theirs = is_given(network) or parse_arm(arm).calls_code
            if self.settings.compile or not (is_theirs or isinstance(error, ValueError)):
                raise
            told = f"failed on a batch of {len(x)} images with {one_line(error)}{line_of(error)}"
            raise UserError(f"{network} with {arm_label(arm)}: {told}.") from error

    def batches(self, epoch: int, *, part: tuple[int, int] = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the training batches of an epoch, or a worker's part of each."""
        how = self.settings
        return batches(
            self.dataset.train,
            dataset=self.dataset,
            batch_size=how.batch_size,
            augment=how.augment,
            device=how.device,
            seed=self.factors["seed"],
            epoch=epoch,
            part=part,
        )

    def _validate(self) -> tuple[float, float]:
        """Evaluate each worker's share of the validation images."""
        images = self.dataset.validation
        share = take(images, torch.arange(worker(), len(images), number_of_workers()))
        loss, hits = sum_over_workers(*evaluated(self.model, share, self.dataset, self.settings))
        return loss.item() / len(images), hits.item() / len(images)


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for layers that have statistics and are not read
        return statistics_of(model)


def _groups(batches: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield the batches in lists of ``size``; the last list may be shorter."""
    rest = iter(batches)
    while group := list(itertools.islice(rest, size)):
        yield group

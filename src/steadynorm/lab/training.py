"""Train one network, from its first epoch or from its last finished one."""

from __future__ import annotations

import contextlib
import itertools
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from steadynorm.lab.data import Dataset, Images, batches, evaluation_batches, first, take
from steadynorm.lab.gradient_norms import gradient_norms, layer_gradients, percentiles, watched_weights
from steadynorm.lab.machine import Precision
from steadynorm.lab.networks import build_network, zero_last_gamma_
from steadynorm.lab.run_directory import RunDirectory
from steadynorm.lab.workers import (
    average_gradients_,
    mean_over_workers,
    number_of_workers,
    settle_,
    sum_over_workers,
    worker,
)
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Epoch, RunRecord, RunSpec
from steadynorm.surgery import param_groups
from steadynorm.surgery.sites import batch_norms_of

__all__ = [
    "Observer",
    "Settings",
    "autocast",
    "evaluate",
    "images_per_second",
    "learning_rate",
    "overflow_ignored",
    "steps_per_epoch",
    "train",
    "write_board",
]

EVALUATION_BATCH = 500
TIMED_STEPS, TIMED_IMAGES = 6, 512  # at least, to find out how fast a network trains
STEPS_BETWEEN_CHECKS = 16  # a look at the loss waits for the device, so it is not taken at every step


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all networks of an experiment share."""

    network: Literal["cnn", "resnet20"]
    depth: int
    widths: tuple[int, ...]
    batch_size: int
    accumulate: int
    """Batches whose gradients are averaged in one step."""
    momentum: float
    weight_decay: float
    milestones: tuple[int, ...]
    """Epochs after which the learning rate is divided by ten."""
    augment: Literal["none", "crop-flip"]
    device: torch.device
    precision: Precision
    at_once: int | None = None
    """Images that fit into memory together, on all workers; a larger batch is averaged from several such."""
    warm_up: int = 0
    """Epochs in which the learning rate rises, step by step and in equal parts, to the one it is to have."""
    warm_up_from: float = 0.0
    """Learning rate that it rises from."""
    spare_norms: bool = False
    """Whether normalizations and biases are left out of the weight decay."""
    zero_last_gamma: bool = False
    """Whether every residual block starts as the identity; see :func:`steadynorm.lab.networks.zero_last_gamma_`."""
    freeze_last: int = 0
    """Last epochs in which batch norms normalize by their running statistics, and these stay."""


class Observer(Protocol):
    """Who wants to know how training goes."""

    def step(self, record: RunRecord, *, step: int, steps: int, loss: float | None) -> None:
        """Note that ``step`` of the ``steps`` of the current epoch are done; loss is None where nobody looked."""
        ...

    def epoch(self, record: RunRecord) -> None:
        """Note that an epoch is finished, and in ``record.epochs``."""
        ...


@dataclass(frozen=True)
class _Steps:
    """What the steps of an epoch measured, on the CPU; one entry or row per step."""

    losses: Tensor
    hits: int
    images: int
    gradient_norms: Tensor
    """Shape (steps, number of watched weights + 1); the last column is of all parameters together."""
    seconds: float

    @property
    def diverged_at(self) -> int | None:
        """First step, counted from 0, whose loss is not finite."""
        bad = (~self.losses.isfinite()).nonzero()
        return int(bad[0]) if len(bad) else None


@contextlib.contextmanager
def overflow_ignored() -> Iterator[None]:
    """Do not warn of a variance that overflows: the loss tells of a training that diverges."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\w+: the sum of squares")
        yield


def train(
    spec: RunSpec, settings: Settings, dataset: Dataset, *, directory: RunDirectory, observer: Observer
) -> RunRecord:
    """Train one network to its last epoch and keep its state after each.

    A run that the directory knows goes on behind its last finished epoch and ends with the numbers of an
    undisturbed run, bit for bit on the same machine, threads and versions: the order of the data is a function
    of seed and epoch, and everything else that training depends on is in the state. A loss that is not finite ends
    the run as diverged, at its step.

    Returns:
        the record, finished or diverged.
    """
    record = directory.load_record(spec)
    if record.status in ("finished", "diverged"):
        return record
    settings = _settings_of(spec, settings)
    trainer = _Trainer.start(spec, settings, dataset, observer)
    if record.epochs:
        try:
            _restore(trainer.model, trainer.optimizer, directory.load_tensors(spec))
        except (KeyError, RuntimeError) as error:
            raise UserError(
                f"{spec.name}: the tensors of its state are those of another network ({error}). "
                "Remove it to train this network anew."
            ) from error
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    record = replace(record, status="running", parameters=parameters)
    with directory.open_board(record) as board:
        while record.status == "running":
            with overflow_ignored():
                record = trainer.epoch(record)
            if record.status == "diverged":
                directory.save_state(record, {})
                break
            if record.status == "finished":
                directory.save_checkpoint(spec, trainer.model.state_dict(), _metadata(spec, settings))
            directory.save_state(record, _state(trainer.model, trainer.optimizer))
            if board is not None:
                write_board(board, record.epochs[-1])
            observer.epoch(record)
    return record


def images_per_second(spec: RunSpec, settings: Settings, dataset: Dataset) -> float:
    """Measure how fast a network trains, over a few steps behind as many to warm up; nothing is kept of it."""
    settings = _settings_of(spec, settings)
    images = max(TIMED_STEPS * settings.batch_size * settings.accumulate, TIMED_IMAGES)
    few = replace(dataset, train=first(dataset.train, images))
    trainer = _Trainer.start(spec, settings, few, _Nobody())
    steps = [trainer._steps(RunRecord(spec=spec)) for _ in range(2)][-1]
    return steps.images / steps.seconds


class _Nobody:
    """An observer that does not listen."""

    def step(self, record: RunRecord, *, step: int, steps: int, loss: float | None) -> None:
        pass

    def epoch(self, record: RunRecord) -> None:
        pass


@dataclass(frozen=True)
class _Trainer:
    """A network while it trains."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: Settings
    dataset: Dataset
    observer: Observer

    @classmethod
    def start(cls, spec: RunSpec, settings: Settings, dataset: Dataset, observer: Observer) -> _Trainer:
        """Build the network with its initial weights."""
        torch.manual_seed(spec.seed)
        model = build_network(
            settings.network,
            arm=spec.arm,
            depth=settings.depth,
            widths=settings.widths,
            classes=len(dataset.classes),
            seed=spec.seed,
            update_every=settings.accumulate,
            batches=spec.epochs * steps_per_epoch(dataset.train, settings) * settings.accumulate,
        )
        if settings.zero_last_gamma:
            zero_last_gamma_(model)
        model.to(settings.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        decayed = param_groups(model, settings.weight_decay) if settings.spare_norms else model.parameters()
        optimizer = torch.optim.SGD(decayed, lr=spec.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
        return cls(model, optimizer, settings, dataset, observer)

    def epoch(self, record: RunRecord) -> RunRecord:
        """Train and validate once; the record comes back with the epoch, finished if it was the last, or diverged."""
        number = len(record.epochs) + 1
        start = time.perf_counter()
        steps = self._steps(record)
        if steps.diverged_at is not None:
            before = (number - 1) * steps_per_epoch(self.dataset.train, self.settings)
            return replace(record, status="diverged", diverged_at_step=before + steps.diverged_at + 1)
        settle_(self.model)
        val_loss, val_accuracy = self._validate()
        whole = steps.gradient_norms[:, -1]
        low, high = percentiles(whole)
        epoch = Epoch(
            epoch=number,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            train_loss=steps.losses.mean().item(),
            train_accuracy=steps.hits / steps.images,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            grad_norm_mean=whole.mean().item(),
            grad_norm_p5=low.item(),
            grad_norm_p95=high.item(),
            images_per_second=steps.images / steps.seconds,
            seconds=time.perf_counter() - start,
        )
        layers = layer_gradients(self.model, steps.gradient_norms, epoch=number)
        return replace(
            record,
            status="finished" if number >= record.spec.epochs else "running",
            epochs=(*record.epochs, epoch),
            layers=(*record.layers, *layers),
        )

    def _steps(self, record: RunRecord) -> _Steps:
        """Take the epoch's steps; stop early where the loss is no longer finite."""
        self.model.train()
        epoch = len(record.epochs) + 1
        if epoch > record.spec.epochs - self.settings.freeze_last:
            for site in batch_norms_of(self.model):
                site.module.eval()
        device, watched = self.settings.device, list(watched_weights(self.model).values())
        total = steps_per_epoch(self.dataset.train, self.settings)
        losses = torch.zeros(total, device=device)
        norms = torch.zeros(total, len(watched) + 1, device=device)
        hits = torch.zeros((), dtype=torch.int64, device=device)
        images = done = looked = 0
        start = time.perf_counter()
        for group in itertools.islice(_groups(self._batches(record), self.settings.accumulate), total):
            rate = learning_rate(record.spec.lr, self.settings, epoch=epoch, share=(done + 1) / total)
            for parameters in self.optimizer.param_groups:
                parameters["lr"] = rate
            self.optimizer.zero_grad()
            for x, labels in group:
                with autocast(self.settings):
                    logits = self.model(x).float()
                loss = F.cross_entropy(logits, labels) / len(group)
                loss.backward()  # type: ignore[no-untyped-call]
                losses[done] += loss.detach()
                hits += (logits.argmax(1) == labels).sum()
                images += len(labels)
            average_gradients_(self.model)
            norms[done] = gradient_norms(self.model, watched)
            self.optimizer.step()
            done += 1
            look = done % STEPS_BETWEEN_CHECKS == 0 or done == total
            if look:
                losses[looked:done] = mean_over_workers(losses[looked:done])
                looked = done
            self.observer.step(record, step=done, steps=total, loss=losses[done - 1].item() if look else None)
            if look and not losses[:done].isfinite().all():
                break
        seconds = time.perf_counter() - start
        hits, shown = sum_over_workers(hits, torch.tensor(images, device=device))
        return _Steps(losses[:done].cpu(), int(hits), int(shown), norms[:done].cpu(), seconds)

    def _batches(self, record: RunRecord) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(
            self.dataset.train,
            dataset=self.dataset,
            batch_size=self.settings.batch_size,
            seed=record.spec.seed,
            epoch=len(record.epochs) + 1,
            augment=self.settings.augment,
            device=self.settings.device,
            part=(worker(), number_of_workers()),
        )

    def _validate(self) -> tuple[float, float]:
        """Evaluate each worker's share of the validation images."""
        images = self.dataset.validation
        share = take(images, torch.arange(worker(), len(images), number_of_workers()))
        loss, hits = sum_over_workers(*_evaluated(self.model, share, self.dataset, self.settings))
        return loss.item() / len(images), hits.item() / len(images)


def evaluate(model: nn.Module, images: Images, dataset: Dataset, settings: Settings) -> tuple[float, float]:
    """Measure mean cross-entropy in nats and accuracy in [0, 1], in evaluation mode; training mode comes back."""
    loss, hits = _evaluated(model, images, dataset, settings)
    return loss.item() / len(images), hits.item() / len(images)


@torch.no_grad()
def _evaluated(model: nn.Module, images: Images, dataset: Dataset, settings: Settings) -> tuple[Tensor, Tensor]:
    """Give the sum of the cross-entropies, and how many images are classified right."""
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=settings.device)
    hits = torch.zeros((), dtype=torch.int64, device=settings.device)
    for x, labels in evaluation_batches(images, dataset=dataset, batch_size=EVALUATION_BATCH, device=settings.device):
        with autocast(settings):
            logits = model(x).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        hits += (logits.argmax(1) == labels).sum()
    model.train(was_training)
    return loss, hits


def autocast(settings: Settings) -> contextlib.AbstractContextManager[object]:
    """Give the context in which a network computes: autocast to bfloat16 where that is the precision."""
    if settings.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(settings.device.type, torch.bfloat16)


def learning_rate(highest: float, settings: Settings, *, epoch: int, share: float = 1.0) -> float:
    """Give the rate of a step: rising to ``highest`` in the warm-up, if there is one, and then lowered.

    Args:
        highest: before any decay.
        epoch: counted from 1.
        share: of the epoch's steps that are done with this one.
    """
    if epoch <= settings.warm_up:
        return settings.warm_up_from + (highest - settings.warm_up_from) * (epoch - 1 + share) / settings.warm_up
    lowered = sum(epoch > milestone for milestone in settings.milestones)
    return highest / 10.0**lowered


def _settings_of(spec: RunSpec, shared: Settings) -> Settings:
    """Give what this network is trained with, a batch that does not fit into memory in parts that do."""
    size = spec.batch_size or shared.batch_size
    parts = size // shared.at_once if shared.at_once and size > shared.at_once else 1
    return replace(
        shared, batch_size=size // parts, accumulate=shared.accumulate * parts, depth=spec.depth or shared.depth
    )


def steps_per_epoch(images: Images, settings: Settings) -> int:
    """Count the steps of whole groups of whole batches; what is left over waits for an epoch that draws it earlier."""
    return max(1, len(images.labels) // (settings.batch_size * settings.accumulate))


def _groups(batches: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Give the batches in lists of ``size``, the last one as long as it comes."""
    rest = iter(batches)
    while group := list(itertools.islice(rest, size)):
        yield group


def _metadata(spec: RunSpec, settings: Settings) -> dict[str, str]:
    """Say what builds the network that a checkpoint belongs to."""
    widths = " ".join(map(str, settings.widths))
    return {"arm": spec.arm, "network": settings.network, "depth": str(settings.depth), "widths": widths}


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    buffers = {
        f"momentum.{name}": optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if optimizer.state[parameter].get("momentum_buffer") is not None
    }
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | buffers


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    kinds = ("model.", "extra.")  # the second in states of version 0.1.0, which held what only our layers have there
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith(kinds)})
    for name, parameter in model.named_parameters():
        if f"momentum.{name}" in tensors:
            buffer = torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"momentum.{name}"])
            optimizer.state[parameter]["momentum_buffer"] = buffer


def write_board(board: SummaryWriter, epoch: Epoch) -> None:
    """Write what TensorBoard shows of an epoch."""
    for name in (
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
        "grad_norm_mean",
        "learning_rate",
    ):
        board.add_scalar(name.replace("_", "/", 1), getattr(epoch, name), epoch.epoch)
    board.flush()

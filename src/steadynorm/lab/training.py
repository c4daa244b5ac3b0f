"""Train one network, from its first epoch or from its last finished one."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from steadynorm.lab.data import Dataset, Images, batches, evaluation_batches
from steadynorm.lab.machine import Precision
from steadynorm.lab.networks import build_network
from steadynorm.lab.records import Epoch, LayerGradient, RunRecord, RunSpec
from steadynorm.lab.run_directory import RunDirectory, save_tensors

__all__ = ["Observer", "Settings", "train"]

EVALUATION_BATCH = 500
STEPS_BETWEEN_CHECKS = 16  # a look at the loss waits for the device, so it is not taken at every step


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all networks of an experiment share."""

    network: Literal["cnn", "resnet20"]
    depth: int
    widths: tuple[int, ...]
    batch_size: int
    momentum: float
    weight_decay: float
    milestones: tuple[int, ...]
    """Epochs after which the learning rate is divided by ten."""
    augment: Literal["none", "crop-flip"]
    device: torch.device
    precision: Precision


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
    torch.manual_seed(spec.seed)
    model = build_network(
        settings.network,
        arm=spec.arm,
        depth=settings.depth,
        widths=settings.widths,
        classes=len(dataset.classes),
        seed=spec.seed,
    )
    model.to(settings.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=spec.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    if record.epochs:
        _restore(model, optimizer, directory.load_tensors(spec))
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    record = replace(record, status="running", parameters=parameters)
    with SummaryWriter(str(directory.tensorboard_path(spec)), purge_step=len(record.epochs) + 1) as board:
        while record.status == "running":
            record = _epoch(record, model, optimizer, settings, dataset, observer)
            if record.status == "diverged":
                break
            if len(record.epochs) == spec.epochs:
                record = replace(record, status="finished")
                metadata = {"arm": spec.arm, "network": settings.network, "depth": str(settings.depth)}
                metadata["widths"] = " ".join(map(str, settings.widths))
                save_tensors(directory.checkpoint_path(spec), model.state_dict(), metadata)
            directory.save_state(record, _state(model, optimizer))
            _write_board(board, record.epochs[-1])
            observer.epoch(record)
    if record.status == "diverged":
        directory.save_state(record, {})
    return record


def _epoch(
    record: RunRecord,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    dataset: Dataset,
    observer: Observer,
) -> RunRecord:
    number = len(record.epochs) + 1
    rate = record.spec.lr / 10 ** sum(number > milestone for milestone in settings.milestones)
    for group in optimizer.param_groups:
        group["lr"] = rate
    start = time.perf_counter()
    steps = _train_epoch(record, model, optimizer, settings, dataset, observer)
    if steps.diverged_at is not None:
        before = (number - 1) * _steps_per_epoch(dataset.train, settings.batch_size)
        return replace(record, status="diverged", diverged_at_step=before + steps.diverged_at + 1)
    val_loss, val_accuracy = evaluate(model, dataset.validation, dataset, settings)
    low, high = _percentiles(steps.gradient_norms)
    mean = steps.gradient_norms.mean(0)
    epoch = Epoch(
        epoch=number,
        learning_rate=rate,
        train_loss=steps.losses.mean().item(),
        train_accuracy=steps.hits / steps.images,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        grad_norm_mean=mean[-1].item(),
        grad_norm_p5=low[-1].item(),
        grad_norm_p95=high[-1].item(),
        images_per_second=steps.images / steps.seconds,
        seconds=time.perf_counter() - start,
    )
    layers = tuple(
        LayerGradient(epoch=number, layer=name, mean=mean[i].item(), p5=low[i].item(), p95=high[i].item())
        for i, name in enumerate(_watched_weights(model))
    )
    return replace(record, epochs=(*record.epochs, epoch), layers=(*record.layers, *layers))


def _train_epoch(
    record: RunRecord,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    dataset: Dataset,
    observer: Observer,
) -> _Steps:
    """Take the epoch's steps; stop early where the loss is no longer finite."""
    model.train()
    watched = list(_watched_weights(model).values())
    total = _steps_per_epoch(dataset.train, settings.batch_size)
    losses = torch.zeros(total, device=settings.device)
    norms = torch.zeros(total, len(watched) + 1, device=settings.device)
    hits = torch.zeros((), dtype=torch.int64, device=settings.device)
    images = done = 0
    start = time.perf_counter()
    for x, labels in batches(
        dataset.train,
        dataset=dataset,
        batch_size=settings.batch_size,
        seed=record.spec.seed,
        epoch=len(record.epochs) + 1,
        augment=settings.augment,
        device=settings.device,
    ):
        with _autocast(settings):
            logits = model(x).float()
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norms[done] = _gradient_norms(model, watched)
        optimizer.step()
        losses[done] = loss.detach()
        hits += (logits.argmax(1) == labels).sum()
        images += len(labels)
        done += 1
        look = done % STEPS_BETWEEN_CHECKS == 0 or done == total
        observer.step(record, step=done, steps=total, loss=losses[done - 1].item() if look else None)
        if look and not losses[:done].isfinite().all():
            break
    seconds = time.perf_counter() - start
    return _Steps(losses[:done].cpu(), int(hits), images, norms[:done].cpu(), seconds)


@torch.no_grad()
def evaluate(model: nn.Module, images: Images, dataset: Dataset, settings: Settings) -> tuple[float, float]:
    """Measure mean cross-entropy in nats and accuracy in [0, 1], in evaluation mode; training mode comes back."""
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=settings.device)
    hits = torch.zeros((), dtype=torch.int64, device=settings.device)
    for x, labels in evaluation_batches(images, dataset=dataset, batch_size=EVALUATION_BATCH, device=settings.device):
        with _autocast(settings):
            logits = model(x).float()
        loss += F.cross_entropy(logits, labels, reduction="sum")
        hits += (logits.argmax(1) == labels).sum()
    model.train(was_training)
    return loss.item() / len(images.labels), hits.item() / len(images.labels)


def _autocast(settings: Settings) -> contextlib.AbstractContextManager[object]:
    if settings.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(settings.device.type, torch.bfloat16)


def _watched_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of convolutions and linear layers, which every arm has under the same name."""
    return {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def _gradient_norms(model: nn.Module, watched: list[Tensor]) -> Tensor:
    """Give the l2 norm of each watched weight's gradient, and last that of all parameters together."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    whole = torch.nn.utils.get_total_norm(gradients)
    return torch.stack([*(torch.linalg.vector_norm(weight.grad) for weight in watched), whole])


def _percentiles(norms: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.quantile(norms.double(), torch.tensor([0.05, 0.95], dtype=torch.float64), dim=0)
    return low, high


def _steps_per_epoch(images: Images, batch_size: int) -> int:
    return max(1, len(images.labels) // batch_size)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    buffers = {
        f"momentum.{name}": optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if optimizer.state[parameter].get("momentum_buffer") is not None
    }
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | buffers


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    for name, parameter in model.named_parameters():
        if f"momentum.{name}" in tensors:
            buffer = torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"momentum.{name}"])
            optimizer.state[parameter]["momentum_buffer"] = buffer


def _write_board(board: SummaryWriter, epoch: Epoch) -> None:
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

"""Train one network, from its first epoch or from its last finished one."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import torch
from torch import Tensor, nn

from steadynorm.lab.cells import Job, Model, State, measure_cells
from steadynorm.lab.data import Dataset, first
from steadynorm.lab.optimization import optimizer_tensors, restore_optimizer_
from steadynorm.lab.settings import Settings
from steadynorm.lab.trainer import Trainer
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.numbers import number
from steadynorm.reporting.records import Cell, Factors, Measurement

if TYPE_CHECKING:
    from steadynorm.lab.experiment import Task

__all__ = ["Positive", "Training", "network", "overflow_ignored", "train_networks"]

TaskT = TypeVar("TaskT", bound="Task[Any]")
Positive = Annotated[int, msgspec.Meta(ge=1)]

TIMED_STEPS, TIMED_IMAGES = 6, 512  # at least, to measure how fast a network trains


@contextlib.contextmanager
def overflow_ignored() -> Iterator[None]:
    """Silence warnings of an overflowing variance: the loss shows that a training diverges."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\w+: the sum of squares")
        yield


def train_networks(
    task: TaskT,
    networks: Sequence[Factors],
    settings: Settings | Callable[[Cell], Settings],
    *,
    dataset: Dataset | None = None,
) -> list[Cell]:
    """Train each unfinished network; see :func:`steadynorm.lab.cells.measure_cells`.

    Args:
        task: that of the experiment.
        networks: results of :func:`network`.
        settings: those of all networks, or a function that returns those of one.
        dataset: default: that of the experiment.
    """
    return measure_cells(
        networks, lambda task: Training(settings=settings, dataset=dataset or task.dataset), task, together=True
    )


def network(
    *,
    arm: str,
    seed: int,
    lr: float,
    epochs: Positive,
    purpose: str | None = None,
    variant: str | None = None,
    batch_size: Positive | None = None,
    depth: Positive | None = None,
) -> Factors:
    """Return the factors of a network, besides what all networks of the experiment share.

    Args:
        arm: registered name of the normalization.
        seed: decides initial weights, order of the data and augmentation.
        lr: learning rate before any decay.
        epochs: number of epochs.
        purpose: ``tune`` marks a short run that only chooses a learning rate; it is judged on held-out training images.
            ``stability`` marks one that only shows whether a rate trains at all.
        variant: name of the way it is trained, if the networks of the experiment differ in it.
        batch_size: images that are normalized together, if the networks differ in it.
        depth: convolutions of the cnn, if the networks differ in it.

    Returns:
        the factors in the order of the cell's name, without those that are None.
    """
    factors = {"purpose": purpose, "variant": variant, "arm": arm, "lr": lr, "batch_size": batch_size, "depth": depth}
    factors |= {"seed": seed, "epochs": epochs}
    return {name: value for name, value in factors.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Training:
    """Trains networks, each a cell; its measurements have the epoch as their step, counted from 1.

    ================================ =====================================================================
    learning_rate                    in force at the epoch's last step
    train_loss, train_accuracy       mean cross-entropy in nats, to smoothed labels where they are smoothed, and
                                     share in [0, 1], over the epoch's training images, measured while they
                                     were trained on
    val_loss, val_accuracy           the same over the validation images, in evaluation mode, after the epoch; the
                                     labels are never smoothed
    grad_norm_mean, _p5, _p95        mean and percentiles over the epoch's steps of the l2 norm of the
                                     gradient: of all parameters, and with a weight's name as subject of that
    images_per_second                training images per second of training, validation left out
    seconds                          wall-clock time of the epoch, validation included; CPU kernels are compiled
                                     before it, what ``--compile`` compiles counts in the first epoch
    parameters (step 0)              number of trainable parameters
    diverged                         its step is that, counted from 1 over the whole training, at which the
                                     loss was first not finite; the value says nothing
    ================================ =====================================================================

    A network that has a state goes on after its last finished epoch and ends with the numbers of an undisturbed one,
    bit for bit on the same machine, threads and versions: the order of the data is a function of seed and epoch, and
    everything else that training depends on is in the state. A loss that is not finite ends it.
    """

    settings: Settings | Callable[[Cell], Settings]
    """Settings of all networks, or a function that returns those of one."""
    dataset: Dataset

    def __call__(self, job: Job) -> Iterator[Measurement | State | Model]:
        """Train one network to its last epoch, with a state after each.

        Raises:
            UserError: the state is not from this training.
        """
        done, epochs = _epochs_done(job.cell), job.factors["epochs"]
        with overflow_ignored():
            self._warm_up(job.cell)
        trainer = self._trainer(job.cell, job.advance)
        if done:
            try:
                _restore(trainer.model, trainer.optimizer, job.tensors)
            except (KeyError, RuntimeError) as error:
                raise UserError(
                    f"{job.cell.name}: the tensors of its state are those of another network ({error}). "
                    "Remove it to train this network again."
                ) from error
        else:
            parameters = sum(one.numel() for one in trainer.model.parameters() if one.requires_grad)
            yield Measurement(quantity="parameters", value=parameters)
        for epoch in range(done + 1, epochs + 1):
            with overflow_ignored():
                rows, readings = trainer.epoch(epoch)
            yield from rows
            if rows[0].quantity == "diverged":
                return
            text = f"epoch {epoch}/{epochs}  {_said(rows)}"
            state = _state(trainer.model, trainer.optimizer)
            yield State(tensors=state, share=epoch / epochs, text=text, readings=readings)
        yield Model(tensors=trainer.model.state_dict(), metadata=_metadata(trainer))

    def images_per_second(self, cell: Cell) -> float:
        """Measure how fast a network trains, over a few steps after a warm-up of as many; saves nothing."""
        few = self._trainer_of_few(cell, steps=TIMED_STEPS, images=TIMED_IMAGES)
        steps = [few.steps(1) for _ in range(2)][-1]
        return steps.images / steps.seconds

    def _warm_up(self, cell: Cell) -> None:
        """Take a step with a second network of the cell, so that kernels compile before the first epoch is timed.

        torch.compile compiles for the network itself, so its time counts in the first epoch.
        """
        few = self._trainer_of_few(cell, steps=1)
        if not few.settings.compile:
            few.steps(1)

    def _trainer_of_few(self, cell: Cell, *, steps: int, images: int = 0) -> Trainer:
        """Start a network on the first training images: this many steps, and at least ``images``."""
        trainer = self._trainer(cell, lambda share, text: None)
        count = max(steps * trainer.settings.batch_size * trainer.settings.accumulate, images)
        return replace(trainer, dataset=replace(self.dataset, train=first(self.dataset.train, count)))

    def _trainer(self, cell: Cell, advance: Callable[[float, str], None]) -> Trainer:
        shared = self.settings if isinstance(self.settings, Settings) else self.settings(cell)
        return Trainer.start(cell.factors, _settings_of(cell.factors, shared), self.dataset, advance)


def _epochs_done(cell: Cell) -> int:
    """Count the epochs of a state.

    Raises:
        UserError: they do not belong to an unfinished training.
    """
    done, planned = list(cell.series("val_accuracy")), cell.factors["epochs"]
    if done != list(range(1, len(done) + 1)) or len(done) > planned:
        raise UserError(
            f"{cell.name}: the state is damaged ({cell.status} with the epochs {done} of {planned}). "
            "Remove it to begin this cell again."
        )
    return len(done)


def _said(rows: Sequence[Measurement]) -> str:
    """Format an epoch's measurements as a line."""
    found = {row.quantity: row.value for row in rows if not row.subject}
    train, val = (f"{number(found[f'{of}_loss'])} {found[f'{of}_accuracy']:.1%}" for of in ("train", "val"))
    speed = f"{found['images_per_second']:,.0f} images/s  {found['seconds']:.1f} s"
    return f"train {train}  validation {val}  gradient {number(found['grad_norm_mean'])}  {speed}"


def _settings_of(factors: Factors, shared: Settings) -> Settings:
    """Return this network's settings; splits a batch that does not fit into memory."""
    size = factors.get("batch_size") or shared.batch_size
    parts = size // shared.at_once if shared.at_once and size > shared.at_once else 1
    return replace(
        shared,
        batch_size=size // parts,
        accumulate=shared.accumulate * parts,
        depth=factors.get("depth") or shared.depth,
    )


def _metadata(trainer: Trainer) -> dict[str, str]:
    """Return the arguments that build the network of a checkpoint."""
    settings, dataset = trainer.settings, trainer.dataset
    return {
        "arm": trainer.factors["arm"],
        "seed": str(trainer.factors["seed"]),
        "network": settings.network,
        "depth": str(settings.depth),
        "widths": " ".join(map(str, settings.widths)),
        "classes": str(len(dataset.classes)),
        "channels": str(dataset.channels),
        "image_size": " ".join(map(str, dataset.image_size)),
    }


def _state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return weights | optimizer_tensors(model, optimizer)


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    kinds = ("model.", "extra.")  # the second name is from version 0.1.0, for buffers that only our layers have
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith(kinds)})
    restore_optimizer_(model, optimizer, tensors)

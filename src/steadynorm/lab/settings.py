"""Training settings that all networks of an experiment share."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import torch

from steadynorm.lab.data import Images
from steadynorm.lab.machine import Precision

__all__ = ["Optimizer", "Schedule", "Settings", "autocast", "steps_per_epoch"]

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["step", "cosine", "one-cycle"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Training settings that all networks of an experiment share."""

    network: str
    depth: int
    widths: tuple[int, ...]
    batch_size: int
    accumulate: int
    """Batches whose gradients are averaged in one step."""
    momentum: float
    """Momentum of SGD."""
    weight_decay: float
    milestones: tuple[int, ...]
    """Epochs after which the learning rate is divided by ten, with the schedule ``step``."""
    augment: Literal["none", "crop-flip"]
    device: torch.device
    precision: Precision
    optimizer: Optimizer = "sgd"
    """See :func:`steadynorm.lab.optimization.make_optimizer`."""
    schedule: Schedule = "step"
    """See :func:`steadynorm.lab.optimization.learning_rate`."""
    label_smoothing: float = 0.0
    """See :func:`steadynorm.lab.optimization.training_loss`."""
    compile: bool = False
    """Whether the network's training passes go through torch.compile."""
    at_once: int | None = None
    """Images that fit into memory at once, over all workers; larger batches are averaged over several parts."""
    warm_up: int = 0
    """Epochs in which the learning rate rises linearly to its full value."""
    warm_up_from: float = 0.0
    """Learning rate at the start of the rise."""
    spare_norms: bool = False
    """Whether weight decay skips normalizations and biases."""
    zero_last_gamma: bool = False
    """Whether every residual block starts as the identity; see :func:`steadynorm.lab.networks.zero_last_gamma_`."""
    freeze_last: int = 0
    """Last epochs in which batch norms normalize by frozen running statistics."""


def autocast(settings: Settings) -> contextlib.AbstractContextManager[object]:
    """Return the context in which a network computes: autocast if the precision is bfloat16."""
    if settings.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(settings.device.type, torch.bfloat16)


def steps_per_epoch(images: Images, settings: Settings) -> int:
    """Count the steps of whole groups of whole batches; what is left over waits for an epoch that draws it earlier."""
    return max(1, len(images.labels) // (settings.batch_size * settings.accumulate))

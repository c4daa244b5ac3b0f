"""Loss and optimizer of a training, the learning rate at each step, and the optimizer's state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steadynorm.lab.settings import Settings
from steadynorm.surgery import param_groups

__all__ = [
    *("ADAMW", "ADAMW_RATES", "learning_rate", "make_optimizer", "optimizer_tensors", "restore_optimizer_"),
    "training_loss",
]

ADAMW: Mapping[str, float] = MappingProxyType({"lr": 1e-3, "weight_decay": 1e-2})
"""Usual settings of AdamW: torch's defaults."""
ADAMW_RATES = (3e-4, 1e-3, 3e-3)
"""Usual learning rates of AdamW, if several are tried."""
RISE, RISE_FROM = 0.3, 25.0  # of one-cycle: share of the steps, and what the rate begins with a fraction of
REMEMBERED = {"momentum": "momentum_buffer", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "step": "step"}
"""Prefix in a state -> key of torch's optimizers, of SGD or of AdamW."""


def training_loss(logits: Tensor, labels: Tensor, settings: Settings) -> Tensor:
    """Measure the mean cross-entropy in nats to smoothed labels.

        target_k = (1 − s) · [k = label] + s / classes,  s = settings.label_smoothing

    Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7.
    """
    return F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)


def make_optimizer(model: nn.Module, settings: Settings, *, lr: float) -> torch.optim.Optimizer:
    """Make the optimizer of a network.

    ``sgd`` adds the decay to the gradient; ``adamw`` shrinks the weights by lr · weight_decay beside its step.

    Source: Loshchilov & Hutter 2019 (arXiv 1711.05101), algorithm 2, with β₁ = 0.9, β₂ = 0.999, ε = 1e-8.
    """
    decay = settings.weight_decay
    decayed = param_groups(model, decay) if settings.spare_norms else model.parameters()
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(decayed, lr=lr, weight_decay=decay)
    return torch.optim.SGD(decayed, lr=lr, momentum=settings.momentum, weight_decay=decay)


def learning_rate(highest: float, settings: Settings, *, done: int, steps: int, epochs: int) -> float:
    """Return the learning rate of a step: it rises to ``highest`` in the warm-up, if any, then follows the schedule.

    With p in [0, 1), the share of the steps after the warm-up that precede this one:

    - ``step``: divided by ten after each milestone;
    - ``cosine``: highest · (1 + cos πp) / 2;
    - ``one-cycle``: in a straight line from highest / 25 to highest while p < 0.3, then the half cosine over the rest.

    Args:
        highest: learning rate before any decay.
        settings: those of the network.
        done: number of steps before this one, over the whole training.
        steps: number of steps in an epoch.
        epochs: number of epochs.

    Source: Loshchilov & Hutter 2017 (arXiv 1608.03983), equation 5, without restarts; Smith & Topin 2018
    (arXiv 1708.07120), with momentum as it is; what the rise begins with is torch's default.
    """
    epoch, warm_up = done // steps + 1, settings.warm_up
    if epoch <= warm_up:
        share = (done % steps + 1) / steps
        return settings.warm_up_from + (highest - settings.warm_up_from) * (epoch - 1 + share) / warm_up
    if settings.schedule == "step":
        lowered = sum(epoch > milestone for milestone in settings.milestones)
        return highest / 10.0**lowered
    share = (done - warm_up * steps) / ((epochs - warm_up) * steps)
    if settings.schedule == "one-cycle":
        if share < RISE:
            return highest * (1 + (RISE_FROM - 1) * share / RISE) / RISE_FROM
        share = (share - RISE) / (1 - RISE)
    return highest * (1 + math.cos(math.pi * share)) / 2


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimizer, by kind and parameter."""
    return {
        f"{kind}.{name}": optimizer.state[parameter][key]
        for kind, key in REMEMBERED.items()
        for name, parameter in model.named_parameters()
        if optimizer.state[parameter].get(key) is not None
    }


def restore_optimizer_(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore an optimizer's state from what :func:`optimizer_tensors` returned."""
    for kind, key in REMEMBERED.items():
        for name, parameter in model.named_parameters():
            found = tensors.get(f"{kind}.{name}")
            if found is None:
                continue
            like = found if found.dim() == 0 else parameter  # the step counter is on the CPU
            optimizer.state[parameter][key] = torch.empty_like(like, requires_grad=False).copy_(found)

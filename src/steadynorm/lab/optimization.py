"""The optimizer of a training, its learning rate at each step, and what it needs to go on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from steadynorm.lab.settings import Settings
from steadynorm.surgery import param_groups

__all__ = ["learning_rate", "make_optimizer", "optimizer_tensors", "restore_optimizer_"]


def make_optimizer(model: nn.Module, settings: Settings, *, lr: float) -> torch.optim.Optimizer:
    """Make what moves the weights of a network."""
    decayed = param_groups(model, settings.weight_decay) if settings.spare_norms else model.parameters()
    return torch.optim.SGD(decayed, lr=lr, momentum=settings.momentum, weight_decay=settings.weight_decay)


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


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Give what an optimizer remembers, by kind and parameter."""
    return {
        f"momentum.{name}": optimizer.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if optimizer.state[parameter].get("momentum_buffer") is not None
    }


def restore_optimizer_(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Let an optimizer remember what :func:`optimizer_tensors` gave."""
    for name, parameter in model.named_parameters():
        if f"momentum.{name}" in tensors:
            buffer = torch.empty_like(parameter, requires_grad=False).copy_(tensors[f"momentum.{name}"])
            optimizer.state[parameter]["momentum_buffer"] = buffer

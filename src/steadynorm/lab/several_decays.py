"""Batch norm that keeps running statistics at several decays at once, for one set of weights.

How fast the running statistics follow has no part in training, which normalizes by the batch: networks that differ in
nothing else have the same weights. So one training gives them all.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from steadynorm.layers import BatchNorm2d
from steadynorm.statistics import measure, update_running_

__all__ = ["DECAYS", "SeveralDecays", "with_decay"]

DECAYS = (0.9, 0.99, 0.5)
"""The article's; torch's default momentum of 0.1 is the first."""


class SeveralDecays(nn.Module):
    """relu(batch norm(x) + residual), whose running statistics choose their own momentum, beside those of each decay.

        running_k = decay_k · running_k + (1 − decay_k) · batch

    Args:
        num_features: C.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.norm = BatchNorm2d(num_features, activation="relu", running="self_tuned")
        self.register_buffer("means", torch.zeros(len(DECAYS), num_features))
        self.register_buffer("vars", torch.ones(len(DECAYS), num_features))
        self.means: Tensor
        self.vars: Tensor

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map (N, C, H, W) to its shape; in training every running estimate follows the batch."""
        if self.training:
            moments = measure(input.detach())
            for mean, var, decay in zip(self.means, self.vars, DECAYS, strict=True):
                update_running_(mean, var, moments, momentum=1 - decay)
        y: Tensor = self.norm(input, residual)
        return y


def with_decay(model: nn.Module, decay: float | None) -> nn.Module:
    """Give a copy of a model whose layers evaluate by the running statistics of one decay.

    Args:
        model: its batch norms are :class:`SeveralDecays`.
        decay: one of :data:`DECAYS`; None is the self-tuned ones.

    Raises:
        ValueError: the decay is none of them.
    """
    if decay is not None and decay not in DECAYS:
        raise ValueError(f"with_decay: decay must be one of {DECAYS} or None, got {decay}.")
    copy = deepcopy(model)
    for module in copy.modules():
        if isinstance(module, SeveralDecays) and decay is not None:
            assert module.norm.running_mean is not None and module.norm.running_var is not None
            module.norm.running_mean.copy_(module.means[DECAYS.index(decay)])
            module.norm.running_var.copy_(module.vars[DECAYS.index(decay)])
    return copy

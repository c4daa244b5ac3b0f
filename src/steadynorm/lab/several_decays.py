"""Batch norm that keeps running statistics at several decays at once, for one set of weights.

How fast the running statistics follow has no part in training, which normalizes by the batch: networks that differ in
nothing else have the same weights. So one training gives them all.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from steadynorm.functional import Activation
from steadynorm.layers.kinds import BATCH_NORMS
from steadynorm.statistics import measure, update_running_

__all__ = ["DECAYS", "SeveralDecays", "with_decay"]

DECAYS = (0.9, 0.99, 0.5)
"""The article's decays; the first is torch's default momentum of 0.1."""


class SeveralDecays(nn.Module):
    """activation(batch norm(x) + residual), with self-tuned running statistics, and others for each decay.

        running_k = decay_k · running_k + (1 − decay_k) · batch

    Args:
        num_features: C.
        dimensions: 2 for images, 1 for (N, C).
        activation: activation of the layer.
    """

    def __init__(self, num_features: int, *, dimensions: int = 2, activation: Activation | None = "relu") -> None:
        super().__init__()
        layer = BATCH_NORMS["batch_norm"].classes[dimensions]
        self.norm = layer(num_features, activation=activation, running="self_tuned")
        self.register_buffer("means", torch.zeros(len(DECAYS), num_features))
        self.register_buffer("vars", torch.ones(len(DECAYS), num_features))
        self.means: Tensor
        self.vars: Tensor

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Map (N, C, *) to the same shape; in training, the batch updates all running statistics."""
        if self.training:
            moments = measure(input.detach())
            for mean, var, decay in zip(self.means, self.vars, DECAYS, strict=True):
                update_running_(mean, var, moments, momentum=1 - decay)
        y: Tensor = self.norm(input, residual)
        return y


def with_decay(model: nn.Module, decay: float | None) -> nn.Module:
    """Return a copy of a model whose layers evaluate with the running statistics of one decay.

    Args:
        model: its batch norms are :class:`SeveralDecays`.
        decay: one of :data:`DECAYS`; None selects the self-tuned ones.

    Raises:
        ValueError: the decay is unknown.
    """
    if decay is not None and decay not in DECAYS:
        raise ValueError(f"with_decay: decay must be one of {DECAYS} or None, got {decay}.")
    copy = deepcopy(model)
    for module in copy.modules():
        if isinstance(module, SeveralDecays) and decay is not None:
            stored = module.norm.get_buffer("running_mean"), module.norm.get_buffer("running_var")
            for kept, values in zip(stored, (module.means, module.vars), strict=True):
                kept.copy_(values[DECAYS.index(decay)])
    return copy

"""Which classes a batch holds, read off the gradient that the loss sends to the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["ClassCounts", "alike", "logits_of"]

SUM = 1e-2
"""A gradient of cross-entropy sums to 0 over the classes; beyond this share of its size it is of another loss."""


class ClassCounts:
    """Counts of the classes in each forward's batch.

    Cross-entropy sends p − y to the logits: one number of each row is negative, that of its label, whatever scales the
    loss. Label smoothing and mixup leave the main label the most negative one. Another loss is told by rows that do
    not sum to 0 (binary cross-entropy, regression), and counts as unread.

    Args:
        forwards: how many are kept.
        classes: K.
        device: of the logits.
    """

    def __init__(self, forwards: int, classes: int, device: torch.device) -> None:
        self.values = torch.zeros(forwards, classes, device=device)
        self.unread = torch.zeros(forwards, dtype=torch.bool, device=device)

    @torch.no_grad()
    def add(self, forward: int, gradient: Tensor) -> None:
        """Count what the gradient of a forward's logits tells, (N, K); nothing is read on the host."""
        gradient = gradient.detach().float()
        labels = gradient.argmin(1)
        told = (gradient.amin(1) < 0).float()
        self.values[forward].scatter_add_(0, labels, told)
        self.unread[forward] |= gradient.sum(1).abs().sum() > SUM * gradient.abs().sum()

    def clear(self) -> None:
        """Forget all."""
        self.values.zero_()
        self.unread.zero_()


def logits_of(output: Any) -> Tensor | None:  # noqa: ANN401 (whatever a model gives)
    """Find the scores of classes in what a model gave, (N, K) with K of at least 2, through which a gradient goes."""
    if isinstance(output, Tensor):
        fits = output.dim() == 2 and output.shape[1] > 1 and output.is_floating_point() and output.requires_grad
        return output if fits else None
    if isinstance(output, Mapping):
        return logits_of(output["logits"]) if "logits" in output else None
    return logits_of(output[0]) if isinstance(output, tuple | list) and output else None


def alike(counts: Tensor) -> Tensor:
    """Give the share of the pairs of a batch that are of one class: 1 for a single class, 1/K where K come alike.

        S = Σₖ nₖ(nₖ − 1) / (N(N − 1))        (..., K) -> (...); NaN for fewer than two samples

    Its expectation over independent draws from shares π is Σ π², for any N.
    """
    samples = counts.sum(-1)
    return (counts * (counts - 1)).sum(-1) / (samples * (samples - 1)).masked_fill(samples < 2, torch.nan)

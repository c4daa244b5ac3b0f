"""Count the classes in each batch from the gradient of the loss with respect to the logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steadynorm.ops.observers import is_transformed

__all__ = ["ClassCounts", "alike", "logits_of"]

SUM = 1e-2
"""Largest sum over the classes, relative to its size, of a gradient of cross-entropy, which sums to 0."""
TOLD = 0.9
"""Fraction of the samples whose label must be visible. Confident ones have no gradient, and the others may share a
class: with a tenth missing, the fraction of same-class pairs grows at most by (10/9)²."""
MOSTLY, MIXED = 0.75, 2
"""Fraction of a row's negative part that makes its label visible, and the number of labels per sample under mixup."""
MOST = 4093
"""Number of counters; larger labels share them, which bounds the cost. A prime, to avoid patterns of labels."""


class ClassCounts:
    """Counts of the classes in each forward's batch.

    Cross-entropy sends p − y to the logits: only the label's entry in each row is negative, for any scale of the
    loss. A smoothed or mixed label is visible if one entry has most of the negative part; or if all others, at least
    three, are negative: the model is more certain of that label than y, or the loss has the opposite sign. A batch with
    too few visible labels counts as empty. Rows of another loss do not sum to 0 (binary cross-entropy, regression); it
    counts as unread.

    Args:
        forwards: number of forwards to keep.
        classes: K.
        device: device of the logits.
    """

    def __init__(self, forwards: int, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.values = torch.zeros(forwards, min(classes, MOST), device=device)
        self.unread = torch.zeros(forwards, dtype=torch.bool, device=device)
        self._stretch = 0

    def listen(self, forward: int, logits: Tensor) -> None:
        """Count a forward's batch when its gradient arrives; ignore one that arrives after :meth:`clear`."""
        stretch = self._stretch

        def hear(gradient: Tensor) -> None:
            if stretch == self._stretch and not is_transformed(gradient):
                self.add(forward, gradient)

        logits.register_hook(hear)  # type: ignore[no-untyped-call, unused-ignore]

    def fits(self, logits: Tensor) -> bool:
        """Whether the logits have the same number of classes and the same device."""
        return self.classes == logits.shape[1] and self.values.device == logits.device

    @torch.no_grad()
    def add(self, forward: int, gradient: Tensor) -> None:
        """Count the labels in the gradient of a forward's logits, (N, K), without a device synchronization.

        A second backward through the same forward replaces the first.
        """
        (least, lowest), (most, highest) = gradient.min(1), gradient.max(1)
        turned = ((gradient > 0).sum(1) == 1) & ((gradient < 0).sum(1) > MIXED) & (most > -least)
        labels = torch.where(turned, highest, lowest)
        size = torch.linalg.vector_norm(gradient, 1, 1, dtype=torch.promote_types(gradient.dtype, torch.float32))
        told = ((least < 0) & (turned | (-least > MOSTLY / 2 * size))).float()
        counts = torch.zeros_like(self.values[0]).scatter_add_(0, labels % MOST, told)
        self.values[forward] = torch.where(told.mean() < TOLD, 0, counts)
        self.unread[forward] |= gradient.sum(1, dtype=size.dtype).abs().sum() > SUM * size.sum()

    def clear(self) -> None:
        """Forget all."""
        self._stretch += 1
        self.values.zero_()
        self.unread.zero_()


def logits_of(output: Any) -> Tensor | None:  # noqa: ANN401 (any model output)
    """Find the logits in a model's output, (N, K) with K of at least 2, that require a gradient."""
    if isinstance(output, Tensor):
        fits = output.dim() == 2 and output.shape[1] > 1 and output.is_floating_point() and output.requires_grad
        return output if fits else None
    if isinstance(output, Mapping):
        return logits_of(output["logits"]) if "logits" in output else None
    if hasattr(output, "logits"):
        return logits_of(output.logits)
    return logits_of(output[0]) if isinstance(output, tuple | list) and output else None


def alike(counts: Tensor) -> Tensor:
    """Return the fraction of a batch's pairs that share a class: 1 for a single class, 1/K for K equal classes.

        S = Σₖ nₖ(nₖ − 1) / (N(N − 1))        (..., K) -> (...); NaN for fewer than two samples

    Its expectation over independent draws from shares π is Σ π², for any N.
    """
    samples = counts.sum(-1)
    return (counts * (counts - 1)).sum(-1) / (samples * (samples - 1)).masked_fill(samples < 2, torch.nan)

"""What a window of test images tells, without labels, about which statistics suit it better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steadynorm.adaptation.outputs import probabilities
from steadynorm.statistics import Moments

__all__ = ["Votes", "deviation", "information"]


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Sums over images of what two predictions say of them; of several batches together, their sum."""

    images: int
    probabilities: Tensor
    """Predicted by batch statistics, summed; shape (classes,)."""
    entropy: float
    """Of each of those predictions, in nats, summed."""
    confidence: float
    """Largest probability predicted by stored statistics, summed."""

    @classmethod
    def of(cls, stored: Tensor, batch: Tensor) -> Votes:
        """Count both predictions of a batch.

        Args:
            stored: logits by stored statistics, shape (N, classes) or (N, classes, ...), where each place of an image
                has a share of its vote.
            batch: logits by batch statistics, of the same shape.
        """
        by_batch = probabilities(batch)
        return cls(
            images=len(batch),
            probabilities=by_batch.mean(2).sum(0),
            entropy=float(torch.special.entr(by_batch).sum(1).mean(1).sum()),
            confidence=float(probabilities(stored).amax(1).mean(1).sum()),
        )

    def with_confidence(self, confidence: float) -> Votes:
        """Give the same votes with another mean confidence."""
        return replace(self, confidence=confidence * self.images)

    def __add__(self, other: Votes) -> Votes:
        """Count the images of both."""
        return Votes(
            images=self.images + other.images,
            probabilities=self.probabilities + other.probabilities,
            entropy=self.entropy + other.entropy,
            confidence=self.confidence + other.confidence,
        )


def information(votes: Votes) -> float:
    """Give the mutual information between image and predicted class by batch statistics, in nats.

        I = H(mean of p) − mean of H(p)        0 ≤ I ≤ ln(classes)

    It is large only where images are told apart with confidence, and into many classes. Batch statistics take away
    what all images of a batch have in common, so a batch of one class is spread over several without confidence: I is
    small whether the images are corrupted or not.

    Source: Bridle, Heading & MacKay 1991, "Unsupervised classifiers, mutual information and 'phantom targets'".
    """
    mean = votes.probabilities / votes.images
    return float(torch.special.entr(mean).sum()) - votes.entropy / votes.images


def deviation(batch: Mapping[str, Moments], stored: Mapping[str, Moments], *, eps: float = 1e-12) -> dict[str, float]:
    """Give, layer by layer, how far variances are from the stored ones.

        deviation = √ meanᶜ ln²( var / stored var )

    Args:
        batch: layer -> moments of its input.
        stored: layer -> running estimates.
        eps: added to both variances, so that a channel without any counts as unchanged.
    """
    ratios = {name: ((each.var + eps) / (stored[name].var + eps)).log() for name, each in batch.items()}
    return {name: math.sqrt(float(ratio.square().mean())) for name, ratio in ratios.items()}

"""Features of a window of test images, without labels, that tell which statistics suit it better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from steadynorm.adaptation.outputs import probabilities
from steadynorm.statistics import Moments, as_row, measure, pool

__all__ = ["Seen", "Votes", "features", "read_row"]

EPS = 1e-8
"""Added to variances, so that a constant channel counts as unchanged."""
LEAST = 1e-6
"""Added before a logarithm; a hundred times as much to shares of a variance."""


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Sums over images of two predictions; those of several batches add up.

    In float64. A prediction's sums are its probabilities (classes,), its logits less their mean (classes,), and three
    numbers: the entropy of each image in nats, its largest probability, and its squared logits less their mean.
    """

    images: int
    stored: Tensor
    """Sums of the predictions by running statistics; shape (2·classes + 3,)."""
    batch: Tensor
    """Sums of the predictions by batch statistics; shape (2·classes + 3,)."""
    both: Tensor
    """How often both name the same class, ⟨p, p′⟩, and the entropy of (p + p′)/2; shape (3,)."""

    @classmethod
    def of(cls, stored: Tensor, batch: Tensor) -> Self:
        """Sum both predictions of a batch.

        Args:
            stored: logits by stored statistics, shape (N, classes) or (N, classes, ...), where each place of an image
                has a share of its vote.
            batch: logits by batch statistics, of the same shape.
        """
        by_stored, by_batch = probabilities(stored), probabilities(batch)
        agree = (by_stored.argmax(1) == by_batch.argmax(1)).double()
        joint = (agree, (by_stored * by_batch).sum(1), torch.special.entr((by_stored + by_batch) / 2).sum(1))
        both = torch.stack([each.double().mean(1).sum() for each in joint])
        return cls(images=len(batch), stored=_told(stored), batch=_told(batch), both=both)

    @property
    def at_stake(self) -> float:
        """Loss of accuracy if all images were of one class, for the class that batch statistics predict less often."""
        classes = (len(self.stored) - 3) // 2
        return float((self.stored - self.batch)[:classes].amax() / self.images)

    def with_stored_of(self, other: Votes) -> Votes:
        """Return these votes with another batch's average prediction by running statistics."""
        scale = self.images / other.images
        return replace(self, stored=scale * other.stored, both=scale * other.both)

    def __add__(self, other: Votes) -> Votes:
        """Add the sums of both."""
        return Votes(
            images=self.images + other.images,
            stored=self.stored + other.stored,
            batch=self.batch + other.batch,
            both=self.both + other.both,
        )


def _told(logits: Tensor) -> Tensor:
    p = probabilities(logits).double()
    centred = logits.double().flatten(2) if logits.dim() > 2 else logits.double()[:, :, None]
    centred = centred - centred.mean(1, keepdim=True)
    numbers = (torch.special.entr(p).sum(1), p.amax(1), centred.square().sum(1))
    return torch.cat((p.mean(2).sum(0), centred.mean(2).sum(0), torch.stack([each.mean(1).sum() for each in numbers])))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Statistics of a layer's input in a window."""

    moments: Moments
    within: Tensor
    """Variance within an image, averaged over images; shape (C,)."""

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Combine batches, given the :func:`read_row` of each; shape (k, 4, C)."""
        weights = rows[:, 2] / rows[:, 2].sum(0)
        return cls(moments=pool(rows[:, :3])[0], within=(weights * rows[:, 3]).sum(0))


def read_row(input: Tensor) -> Tensor:
    """Return mean, variance, count, and variance within an image of a layer's input (N, C, ...); shape (4, C)."""
    row = as_row(measure(input))
    within = input.flatten(2).var(2, correction=0).mean(0).to(row) if input.dim() > 2 else torch.zeros_like(row[0])
    return torch.cat((row, within[None]))


def features(votes: Votes, seen: Mapping[str, Seen], stored: Mapping[str, Moments]) -> Tensor:
    """Describe a window by numbers from which its number of classes and the gain of its statistics are estimated.

    For each layer: the squared distance of its mean from the running mean, the ratio of the variances, and the share of
    the variance between images. For the predictions by either statistics: the information

        I = H(mean of p) − mean of H(p)        0 ≤ I ≤ ln(classes)

    with confidence, H(mean of p) and the variance of the logits; and the agreement of both predictions. Batch
    statistics remove what all images of a window have in common. So with one class the predictions separate the images
    with less confidence and by other channels than with many, corrupted or not.

    Returns:
        shape (4·layers + 11,), float64, on the CPU.

    Source: I: Bridle, Heading & MacKay 1991, "Unsupervised classifiers, mutual information and 'phantom targets'".
    """
    layers = [_of_layer(each, stored[name]) for name, each in seen.items()]
    by_stored, by_batch = (_of_prediction(each / votes.images) for each in (votes.stored, votes.batch))
    agree, product, entropy = (votes.both / votes.images).unbind()
    apart = entropy - (votes.stored[-3] + votes.batch[-3]) / (2 * votes.images)
    return torch.cat((*layers, by_stored, by_batch, torch.stack((agree, product, apart)))).double().cpu()


def _of_layer(seen: Seen, stored: Moments) -> Tensor:
    var, usual = seen.moments.var.double() + EPS, stored.var.double() + EPS
    step = (seen.moments.mean - stored.mean).double().square() / usual
    ratio = (var / usual).log() / 2
    share = ((var - EPS - seen.within) / var).clamp(min=0)
    told = (step.mean().add(LEAST).log(), ratio.mean(), ratio.square().mean().add(LEAST).log())
    return torch.stack((*told, share.add(100 * LEAST).log().mean()))


def _of_prediction(told: Tensor) -> Tensor:
    """Return information, confidence, H(mean of p) and the logarithm of the logits' variance."""
    p, logits = told[:-3].chunk(2)
    entropy, confidence, squares = told[-3:].unbind()
    spread = torch.special.entr(p).sum()
    return torch.stack((spread - entropy, confidence, spread, (squares - logits.square().sum()).clamp(min=LEAST).log()))

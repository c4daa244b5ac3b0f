"""What the inputs of each batch norm are for each class, and what a shift is beside a choice of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from steadynorm.statistics import Moments
from steadynorm.statistics.moments import mixture

__all__ = ["ClassMoments", "ClassSums", "Steps", "shifted_stored"]

EPS = 1e-8
"""Added to both variances of a ratio, relative to the stored one, so that a channel without any counts as unchanged."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMoments:
    """Layer -> moments of its input for each class, on clean images; shape (2, classes, C): means, then variances."""

    of: Mapping[str, Tensor]

    def mixture(self, name: str, shares: Tensor) -> Moments:
        """Return the moments of clean images of which each class has its share, shape (classes,)."""
        means, variances = self.of[name].to(shares.device)
        mean, var = mixture(means, variances, shares.to(means)[:, None])
        return Moments(mean=mean, var=var, count=0)


def shifted_stored(stored: Moments, seen: Moments, expected: Moments) -> Moments:
    """Return the stored moments as they would be under the shift that took ``expected`` to ``seen``.

        scale² = seen var / expected var
        mean = seen mean + scale·(stored mean − expected mean)        var = scale²·stored var

    A shift is taken for an affine map of each channel. Where nothing has shifted this gives the stored moments,
    whichever classes were seen; where all classes were, as often as in training, it gives the moments seen.

    Args:
        stored: running estimates, of all classes.
        seen: of a window of the stream.
        expected: of clean images of the window's classes.
    """
    eps = EPS * stored.var + torch.finfo(stored.var.dtype).tiny
    ratio = (seen.var + eps) / (expected.var + eps)
    mean = seen.mean + ratio.sqrt() * (stored.mean - expected.mean)
    return Moments(mean=mean, var=ratio * stored.var, count=0)


@dataclass(kw_only=True)
class ClassSums:
    """Collects :class:`ClassMoments` batch after batch.

    A layer whose input has not one row for each image is left out.
    """

    _of: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)

    def add(self, name: str, input: Tensor, labels: Tensor) -> None:
        """Take the input (N, C, ...) of a layer, for images of these labels (N,)."""
        if len(input) == len(labels):
            var, mean = torch.var_mean(input.flatten(2) if input.dim() > 2 else input[:, :, None], 2, correction=0)
            self._of.setdefault(name, []).append((mean.float(), var.float(), labels))

    def finish(self, classes: int) -> ClassMoments:
        """Return the moments of so many classes; a class without images has those of all images together."""
        found = {}
        for name, parts in self._of.items():
            mean, var, labels = (torch.cat(each) for each in zip(*parts, strict=True))
            every = torch.stack(_together(mean, var))
            each = [
                torch.stack(_together(mean[labels == label], var[labels == label]))
                if (labels == label).any()
                else every
                for label in range(classes)
            ]
            found[name] = torch.stack(each, 1)
        return ClassMoments(of=found)


def _together(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    return mixture(mean, var, torch.full((len(mean), 1), 1 / len(mean), device=mean.device))


@dataclass(frozen=True, kw_only=True, eq=False)
class Steps:
    """How far the moments of windows of one class each are apart, in the shallower layers, where shifts show."""

    apart: Mapping[str, float]
    """Layer -> how far two windows of one class each are apart, at most."""

    @classmethod
    def measure(cls, single: Sequence[Mapping[str, Moments]]) -> Steps:
        """Compare windows of one class each."""
        names = list(single[0])
        apart = {
            name: max((distance(one[name], other[name]) for one, other in combinations(single, 2)), default=0.0)
            for name in names[: (len(names) + 1) // 2]
        }
        return cls(apart=apart)

    def between(self, before: Mapping[str, Moments], after: Mapping[str, Moments]) -> float:
        """Say how far two windows are apart, in units of what classes make; above 1 the images have shifted."""
        return max(
            (distance(before[name], after[name]) / max(most, EPS) for name, most in self.apart.items()), default=0
        )


def distance(one: Moments, other: Moments) -> float:
    """Return √ meanᶜ ( (Δmean)²/var + (½·Δ ln var)² ), where var is the mean of both."""
    var = (one.var + other.var) / 2
    eps = EPS + 1e-5 * var
    means = (one.mean - other.mean).square() / (var + eps)
    logs = ((one.var + eps) / (other.var + eps)).log() / 2
    return float((means + logs.square()).mean().sqrt())

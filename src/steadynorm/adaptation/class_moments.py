"""What the inputs of each batch norm are for each class, and what a shift is beside a choice of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from steadynorm.statistics import Moments
from steadynorm.statistics.moments import mixture

__all__ = ["ClassMoments", "ClassSums", "Profiles", "shifted_stored"]

EPS = 1e-8
"""Added to both variances of a ratio, relative to the stored one, so that a channel without any counts as unchanged."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMoments:
    """Layer -> moments of its input for each class, on clean images; shape (2, classes, C): means, then variances."""

    of: Mapping[str, Tensor]

    def mixture(self, name: str, shares: Tensor) -> Moments:
        """Give the moments of clean images of which each class has its share, shape (classes,)."""
        means, variances = self.of[name].to(shares.device)
        mean, var = mixture(means, variances, shares.to(means)[:, None])
        return Moments(mean=mean, var=var, count=0)


def shifted_stored(stored: Moments, seen: Moments, expected: Moments) -> Moments:
    """Give the stored moments as they would be under the shift that took ``expected`` to ``seen``.

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
        """Give the moments of so many classes; a class without images has those of all images together."""
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
class Profiles:
    """How the moments of windows of one class differ from those of all and from each other, by batch statistics.

    From all in the deeper half of the layers, where classes show, but never in the first, whose input holds the whole
    shift; from each other in the shallower, where shifts show.
    """

    mixed: Mapping[str, Moments]
    """Layer -> moments of clean windows of all classes, averaged."""
    of: Mapping[str, Tensor]
    """Layer -> difference to those of a window of one class, for each class; shape (classes, 2·C)."""
    apart: Mapping[str, float]
    """Layer -> how far two windows of one class each are apart, at most."""

    @classmethod
    def measure(cls, mixed: Sequence[Mapping[str, Moments]], single: Sequence[Mapping[str, Moments]]) -> Profiles:
        """Compare windows of one class each with some of all classes."""
        names = list(mixed[0])
        usual = {
            name: Moments(
                mean=torch.stack([each[name].mean for each in mixed]).mean(0),
                var=torch.stack([each[name].var for each in mixed]).mean(0),
                count=0,
            )
            for name in names[max(1, len(names) // 2) :]
        }
        of = {name: torch.stack([_difference(each[name], usual[name]) for each in single]) for name in usual}
        apart = {
            name: max((distance(one[name], other[name]) for one, other in combinations(single, 2)), default=0.0)
            for name in names[: (len(names) + 1) // 2]
        }
        return cls(mixed=usual, of=of, apart=apart)

    def step(self, before: Mapping[str, Moments], after: Mapping[str, Moments]) -> float:
        """Say how far two windows are apart, in units of what classes make; above 1 the images have shifted."""
        return max(
            (distance(before[name], after[name]) / max(most, EPS) for name, most in self.apart.items()), default=0
        )

    def concentration(self, moments: Mapping[str, Moments]) -> float:
        """Say how far a window goes from all classes, 0, to one of them, about 1.

        d(window) = [(mean − mixed mean)/√mixed var, ½·ln(var / mixed var)]        in each layer
        concentration = max over classes of meanˡ ⟨d(window), d(class)⟩ / ‖d(class)‖²
        """
        scores = []
        for name, mixed in self.mixed.items():
            classes = self.of[name].to(moments[name].mean.device)
            lengths = classes.square().sum(1)
            usual = Moments(mean=mixed.mean.to(classes.device), var=mixed.var.to(classes.device), count=0)
            found = classes @ _difference(moments[name], usual)
            scores.append(torch.where(lengths > 0, found / lengths.clamp(min=EPS), 0))
        return float(torch.stack(scores).mean(0).max()) if scores else 0.0


def distance(one: Moments, other: Moments) -> float:
    """Give √ meanᶜ ( (Δmean)²/var + (½·Δ ln var)² ), of which var is the mean of both."""
    var = (one.var + other.var) / 2
    eps = EPS + 1e-5 * var
    means = (one.mean - other.mean).square() / (var + eps)
    logs = ((one.var + eps) / (other.var + eps)).log() / 2
    return float((means + logs.square()).mean().sqrt())


def _difference(moments: Moments, mixed: Moments) -> Tensor:
    eps = EPS + 1e-5 * mixed.var
    means = (moments.mean - mixed.mean) / (mixed.var + eps).sqrt()
    return torch.cat((means, ((moments.var + eps) / (mixed.var + eps)).log() / 2))

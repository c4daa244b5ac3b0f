"""Kernel ridge regression on few examples, and its errors on groups left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

__all__ = ["Regression", "left_out"]

LENGTH, LINEAR = 1.5, 0.3
"""Length scale of the kernel in standard deviations, and weight of its linear part."""
EPS = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Regression:
    """Kernel ridge regression on features that are standardized and clamped to the range of the examples.

        f(x) = level + Σᵢ weightsᵢ · k(x, pointsᵢ)        k(x, y) = exp(−‖x − y‖²/(2·LENGTH²·d)) + LINEAR·⟨x, y⟩/d

    All in float64 on the CPU.

    Source: Saunders, Gammerman & Vovk 1998, "Ridge regression learning algorithm in dual variables".
    """

    center: Tensor
    scale: Tensor
    points: Tensor
    """Examples, standardized; shape (examples, d)."""
    weights: Tensor
    level: float

    @classmethod
    def fit(cls, features: Tensor, targets: Tensor, importance: Tensor, *, ridge: float) -> Self:
        """Fit (n, d) features to (n,) targets, weighted by importance.

        Args:
            features: shape (n, d).
            targets: shape (n,).
            importance: shape (n,), about 1 on average.
            ridge: strength of the regularization.
        """
        center, scale = features.mean(0), features.std(0, correction=0) + EPS
        points = (features - center) / scale
        level = float((importance * targets).sum() / importance.sum())
        weights = torch.linalg.solve(_kernel(points, points) + ridge * torch.diag(1 / importance), targets - level)
        return cls(center=center, scale=scale, points=points, weights=weights, level=level)

    def __call__(self, features: Tensor) -> Tensor:
        """Predict (n, d) -> (n,)."""
        x = (features - self.center) / self.scale
        x = torch.minimum(torch.maximum(x, self.points.amin(0)), self.points.amax(0))
        return self.level + _kernel(x, self.points) @ self.weights


def left_out(features: Tensor, targets: Tensor, importance: Tensor, *, ridge: float, groups: Sequence[str]) -> Tensor:
    """Predict the examples of each group by a regression on all others; shape (n,)."""
    found = torch.empty_like(targets)
    for group in dict.fromkeys(groups):
        here = torch.tensor([each == group for each in groups])
        fitted = Regression.fit(features[~here], targets[~here], importance[~here], ridge=ridge)
        found[here] = fitted(features[here])
    return found


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    far = torch.cdist(x, y).square()
    return (-far / (2 * LENGTH**2 * x.shape[1])).exp() + LINEAR * (x @ y.T) / x.shape[1]

"""What a rule is: two plain functions on tensors of shape (C,), a forward and its explicit backward."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from steadynorm.statistics import Moments

__all__ = ["Affine", "Rule"]


class Affine(NamedTuple):
    """What the transform applies to a channel, y = (x − center)·scale + shift; each of shape (C,).

    As the argument of a rule's backward: the gradients with respect to the three.
    """

    center: Tensor
    scale: Tensor
    shift: Tensor


class Rule(Protocol):
    """Moments and parameters in, center, scale and shift out.

    A rule is a frozen dataclass that holds what has no gradient (eps, stored statistics, bounds). A parameter
    that the layer does not have is None.
    """

    def forward(self, moments: Moments, *parameters: Tensor | None) -> Affine:
        """Give center, scale and shift."""
        ...

    def backward(
        self, gradient: Affine, moments: Moments, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Give the gradients with respect to mean, to var, and to each parameter (None where it is None)."""
        ...

"""The rule protocol: two plain functions on tensors of shape (C,), a forward and its explicit backward."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from steadynorm.statistics import Moments

__all__ = ["CenterScaleShift", "FusedRule", "Rule"]


class CenterScaleShift(NamedTuple):
    """The affine map of the transform, y = (x − center)·scale + shift; each of shape (C,).

    As the argument of a rule's backward: the gradients with respect to the three.
    """

    center: Tensor
    scale: Tensor
    shift: Tensor


class Rule(Protocol):
    """A map from moments and parameters to center, scale and shift.

    A rule is a frozen dataclass that holds values without gradient (eps, stored statistics, bounds). A parameter
    that the layer does not have is None.
    """

    def forward(self, moments: Moments, *parameters: Tensor | None) -> CenterScaleShift:
        """Return center, scale and shift."""
        ...

    def backward(
        self, gradient: CenterScaleShift, moments: Moments, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Return the gradients with respect to mean, to var, and to each parameter (None where it is None)."""
        ...


class FusedRule(Rule, Protocol):
    """A rule that also has a compiled form, in ``ops/_numba_NAME.py``, beside its own ``rules/NAME.py``.

    Its parameters are weight, bias, the running mean and variance if it reads them, and the rule's own.
    """

    reads_running: ClassVar[bool]
    """Whether running mean and variance are parameters."""

    @property
    def learns(self) -> bool:
        """Whether the last of the rule's own parameters has a gradient."""
        ...

    def compiled(self, *own: Tensor | None) -> Any:  # noqa: ANN401 (a NamedTuple, see ``ops/_numba_rules.py``)
        """Return the compiled form, with the numbers of the rule's own parameters."""
        ...

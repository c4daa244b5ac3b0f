"""What a rule is: two plain functions on tensors of shape (C,), a forward and its explicit backward."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from steadynorm.statistics import Moments

__all__ = ["CenterScaleShift", "FusedRule", "Rule"]


class CenterScaleShift(NamedTuple):
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

    def forward(self, moments: Moments, *parameters: Tensor | None) -> CenterScaleShift:
        """Give center, scale and shift."""
        ...

    def backward(
        self, gradient: CenterScaleShift, moments: Moments, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Give the gradients with respect to mean, to var, and to each parameter (None where it is None)."""
        ...


class FusedRule(Rule, Protocol):
    """A rule that also has a compiled form, in ``ops/_numba_NAME.py``, beside its own ``rules/NAME.py``.

    Its parameters are weight, bias, the running mean and variance where it reads them, and the rule's own.
    """

    reads_running: ClassVar[bool]
    """Whether mean and variance of the running statistics are parameters."""

    @property
    def learns(self) -> bool:
        """Whether the last of the rule's own parameters has a gradient."""
        ...

    def compiled(self, *own: Tensor | None) -> Any:  # noqa: ANN401 (a NamedTuple, see ``ops/_numba_rules.py``)
        """Give the compiled form, with the numbers of the rule's own parameters."""
        ...

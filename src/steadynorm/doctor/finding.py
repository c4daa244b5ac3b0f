"""What a check has found: where, how bad, what it costs, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

__all__ = ["Cost", "Finding", "Named", "Remedy", "Severity", "at", "of_model"]

_STUDENT = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36)
"""Standard errors that chance exceeds in one case of forty, by degrees of freedom."""


class Severity(IntEnum):
    """How bad a finding is.

    ``NOTE``: worth knowing, costs nothing that was measured. ``WARNING``: costs accuracy, or will under a condition
    that the finding states. ``ERROR``: outputs are wrong now, or training stops.
    """

    NOTE = 0
    WARNING = 1
    ERROR = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a fault costs, measured on the batches that were given.

    Args:
        quantity: what was measured: name of the score, such as ``accuracy`` or ``cross-entropy``.
        value: how much better it would be without the fault, in the quantity's own units; never negative for a fault.
        standard_error: of the value, over batches; NaN for a single batch.
    """

    quantity: str
    value: float
    standard_error: float

    def matters(self, scores: Sequence[float], share: float = 1 / 20, *, expected: bool = False) -> bool:
        """Tell whether it is above 0 by Student's test at 2.5 %, and more than a share of the mean score.

        A twentieth keeps healthy models silent: of 150 (``make doctor-bench``, tuning half) none came to a fortieth. A
        tenth is added to a mean cross-entropy first: where it is almost 0, a part of it is nothing.

        Args:
            scores: without the fault, one for each batch that the value is a mean over.
            share: of their mean.
            expected: whether something else than the scores says so too; then one and a half standard errors and
                half of the share are enough.
        """
        size = abs(sum(scores) / len(scores)) + (0.1 if self.quantity == "cross-entropy" else 0.0)
        errors = 1.5 if expected else _STUDENT[min(len(scores) - 1, len(_STUDENT) - 1)]
        return self.value > errors * self.standard_error and self.value > (share / 2 if expected else share) * size


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """What to do about a finding.

    Args:
        advice: one sentence.
        treatment: name of the treatment that :func:`steadynorm.treat_` applies; empty where only the user can act.
    """

    advice: str
    treatment: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault at one layer, or of the model as a whole.

    Args:
        check: name of the check, such as ``nonfinite-statistics``; :class:`steadynorm.doctor.check.Check` fills it in.
        layer: qualified name; empty for the model as a whole.
        what: the layer's class and size.
        severity: how bad it is.
        problem: what is wrong, in one sentence for a reader who has not met it before.
        remedy: what to do.
        numbers: what the check has measured, by name.
        cost: what it costs; None where that was not measured.
    """

    check: str = ""
    layer: str
    what: str
    severity: Severity
    problem: str
    remedy: Remedy
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    cost: Cost | None = None

    @property
    def place(self) -> str:
        """The layer's name, for a reader."""
        return self.layer or "(the model)"


class Named(Protocol):
    """A layer as evidence holds it."""

    @property
    def name(self) -> str:
        """Its qualified name."""
        ...

    @property
    def label(self) -> str:
        """Its class and size."""
        ...


def at(layer: Named, severity: Severity, problem: str, remedy: Remedy, **numbers: float | str) -> Finding:
    """Give a finding at a layer."""
    return Finding(
        layer=layer.name, what=layer.label, severity=severity, problem=problem, remedy=remedy, numbers=numbers
    )


def of_model(
    severity: Severity,
    problem: str,
    remedy: Remedy,
    cost: Cost | None = None,
    layer: Named | None = None,
    **numbers: float | str,
) -> Finding:
    """Give a finding of the model as a whole, or at the layer that explains it, with its cost where that is known."""
    return Finding(
        layer=layer.name if layer else "",
        what=layer.label if layer else "",
        severity=severity,
        problem=problem,
        remedy=remedy,
        numbers=numbers,
        cost=cost,
    )

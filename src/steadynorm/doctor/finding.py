"""A finding of a check: where, how bad, what it costs, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

__all__ = ["Cost", "Finding", "Named", "Remedy", "Severity", "at", "of_model"]

_STUDENT = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36)
"""Student's 97.5 % quantile by degrees of freedom, in standard errors."""


class Severity(IntEnum):
    """Severity of a finding.

    ``NOTE``: worth knowing, without a measured cost. ``WARNING``: costs accuracy, or will under a condition that the
    finding states. ``ERROR``: outputs are wrong now, or training fails.
    """

    NOTE = 0
    WARNING = 1
    ERROR = 2

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a fault, measured on the given batches.

    Args:
        quantity: name of the score, such as ``accuracy`` or ``cross-entropy``.
        value: improvement without the fault, in units of the score; not negative.
        standard_error: of the value, over batches; NaN for a single batch.
    """

    quantity: str
    value: float
    standard_error: float

    def matters(self, scores: Sequence[float], share: float = 1 / 20, *, expected: bool = False) -> bool:
        """Return whether the cost is significant (Student's test at 2.5 %) and above a fraction of the mean score.

        The default of 1/20 raises no false alarm: of 150 healthy models (``make doctor-bench``, tuning half) none
        reached 1/40. For cross-entropy 0.1 is first added to the mean, because a fraction of a value near 0 means
        nothing.

        Args:
            scores: without the fault, one for each batch.
            share: fraction of their mean.
            expected: whether other evidence agrees; then one and a half standard errors and half of the fraction
                suffice.

        Returns:
            whether the cost matters.
        """
        size = abs(sum(scores) / len(scores)) + (0.1 if self.quantity == "cross-entropy" else 0.0)
        errors = 1.5 if expected else _STUDENT[min(len(scores) - 1, len(_STUDENT) - 1)]
        return self.value > errors * self.standard_error and self.value > (share / 2 if expected else share) * size


@dataclass(frozen=True, kw_only=True)
class Remedy:
    """Remedy of a finding.

    Args:
        advice: what to do, in one sentence.
        treatment: name of the treatment that :func:`steadynorm.treat_` applies; empty if only the user can act.
    """

    advice: str
    treatment: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault, of a layer or of the whole model.

    Args:
        check: name of the check, such as ``nonfinite-statistics``.
        layer: qualified name; empty for the whole model.
        what: class and size of the layer.
        severity: how bad it is.
        problem: what is wrong, in one sentence.
        remedy: what to do.
        numbers: what the check measured, by name.
        cost: measured cost; None if it was not measured.
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
        """Name of the layer for display."""
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
    """Build a finding at a layer."""
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
    """Build a finding of the whole model, or at the layer that explains it, with its cost if known."""
    return Finding(
        layer=layer.name if layer else "",
        what=layer.label if layer else "",
        severity=severity,
        problem=problem,
        remedy=remedy,
        numbers=numbers,
        cost=cost,
    )

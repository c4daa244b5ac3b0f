"""Write a diagnosis as JSON, and read it back.

The document is an object with ``format`` (1), ``steadynorm`` (the version that wrote it), ``healthy``, ``looked_at``,
``checks``, ``not_run`` (name of a check -> what it needs), ``unread`` and ``findings``, worst first. A finding has
``check``, ``layer`` (empty for the model as a whole), ``what``, ``severity`` (``note``, ``warning``, ``error``),
``problem``, ``remedy`` (``advice``, and ``treatment`` where one exists, else empty), ``numbers`` and ``cost``
(``quantity``, ``value``, ``standard_error``) or null. A number that is not finite is null in ``cost`` and text such as
``"inf"`` in ``numbers``. ``layers`` has ``name``, ``what``, ``distance``, ``sampling`` and ``won_back`` of every
batch norm, numbers that are not known null. Every character beyond ASCII is an escape. Further keys may be added
within a format.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from steadynorm.doctor.diagnosis import Diagnosis, LayerSummary
from steadynorm.doctor.finding import Cost, Finding, Remedy, Severity

__all__ = ["FORMAT", "as_document", "from_json", "to_json"]

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class _Cost:
    quantity: str
    value: float | None
    standard_error: float | None


@dataclass(frozen=True, kw_only=True)
class _Finding:
    check: str
    layer: str
    what: str
    severity: Literal["note", "warning", "error"]
    problem: str
    remedy: Remedy
    numbers: dict[str, float | int | str]
    cost: _Cost | None


@dataclass(frozen=True, kw_only=True)
class _Document:
    format: Literal[1]
    looked_at: str
    checks: tuple[str, ...]
    not_run: dict[str, str]
    unread: tuple[str, ...]
    findings: tuple[_Finding, ...]
    layers: tuple[LayerSummary, ...] = ()


def to_json(diagnosis: Diagnosis) -> str:
    """Write a diagnosis as JSON."""
    return json.dumps(as_document(diagnosis), indent=2, allow_nan=False) + "\n"


def as_document(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the content of the JSON document."""
    from steadynorm import __version__  # which imports everything below the doctor

    return {
        "format": FORMAT,
        "steadynorm": __version__,
        "healthy": diagnosis.is_healthy,
        "looked_at": diagnosis.looked_at,
        "checks": list(diagnosis.checks),
        "not_run": dict(diagnosis.not_run),
        "unread": list(diagnosis.unread),
        "findings": [_finding(each) for each in diagnosis.findings],
        "layers": [asdict(each) for each in diagnosis.layers],
    }


def from_json(text: str | bytes) -> Diagnosis:
    """Read a diagnosis.

    Raises:
        ValueError: not JSON, or another form or version.
    """
    import msgspec

    try:
        found = msgspec.json.decode(text, type=_Document)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"diagnosis: must be a document of format {FORMAT}, got another ({error}).") from error
    return Diagnosis(
        findings=tuple(map(_read, found.findings)),
        looked_at=found.looked_at,
        checks=found.checks,
        not_run=found.not_run,
        unread=found.unread,
        layers=found.layers,
    )


def _finding(finding: Finding) -> dict[str, Any]:
    cost = finding.cost
    return {
        "check": finding.check,
        "layer": finding.layer,
        "what": finding.what,
        "severity": str(finding.severity),
        "problem": finding.problem,
        "remedy": {"advice": finding.remedy.advice, "treatment": finding.remedy.treatment},
        "numbers": {name: _number(value) for name, value in finding.numbers.items()},
        "cost": cost
        and {
            "quantity": cost.quantity,
            "value": _finite(cost.value),
            "standard_error": _finite(cost.standard_error),
        },
    }


def _read(found: _Finding) -> Finding:
    cost = found.cost
    return Finding(
        check=found.check,
        layer=found.layer,
        what=found.what,
        severity=Severity[found.severity.upper()],
        problem=found.problem,
        remedy=found.remedy,
        numbers=found.numbers,
        cost=None if cost is None else _read_cost(cost),
    )


def _read_cost(cost: _Cost) -> Cost:
    return Cost(quantity=cost.quantity, value=_or_nan(cost.value), standard_error=_or_nan(cost.standard_error))


def _number(value: float | int | str) -> float | int | str:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value

"""A diagnosis: findings, and what was and was not examined."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from steadynorm.doctor.finding import Finding, Severity
from steadynorm.printable import printable_line

__all__ = ["MOST_NAMED", "Diagnosis", "LayerSummary", "places_of"]

MOST_NAMED = 4
"""Layers named one by one in a group of identical findings."""


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """What the batches show of one batch norm, whether or not a check reports it.

    Args:
        name: qualified name.
        what: class and size.
        distance: from the running statistics to the batches' moments, in standard deviations: root mean square over
            channels of shift and log-gain; None without running statistics.
        sampling: expected distance from sampling alone; None without running statistics.
        won_back: of the gap between evaluation with running and with batch statistics, the fraction that this layer
            alone closes by using batch statistics; None without a gap or if not measured.
    """

    name: str
    what: str
    distance: float | None
    sampling: float | None
    won_back: float | None


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Result of the checks; iterate over the findings, or print it.

    Printed, it has a headline, what was examined, and for each check with findings the worst one and the affected
    layers.

    Args:
        findings: worst first.
        looked_at: what was examined, in words.
        checks: names of the checks that ran.
        not_run: name of a check that did not run -> what it needs.
        unread: what could not be examined, one line each.
        layers: every batch norm that the batches reach, in model order; empty without batches.
    """

    findings: tuple[Finding, ...]
    looked_at: str
    checks: tuple[str, ...]
    not_run: dict[str, str]
    unread: tuple[str, ...] = ()
    layers: tuple[LayerSummary, ...] = ()

    @property
    def worst(self) -> Severity | None:
        """Highest severity; None without findings."""
        return max((finding.severity for finding in self.findings), default=None)

    @property
    def is_healthy(self) -> bool:
        """Whether there are no findings beyond notes."""
        return self.worst is None or self.worst < Severity.WARNING

    def of(self, check: str) -> tuple[Finding, ...]:
        """Return the findings of one check."""
        return tuple(finding for finding in self.findings if finding.check == check)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __str__(self) -> str:
        lines = [self.headline, self.scope, *self._found(), *map(_cannot, self.unread)]
        return "\n".join(map(printable_line, lines))

    @property
    def headline(self) -> str:
        """Number of findings by severity, in one sentence."""
        if not self.findings:
            return "Healthy: no fault was found."
        number = {severity: sum(each.severity == severity for each in self.findings) for severity in Severity}
        counts = [_counted(number[severity], str(severity)) for severity in reversed(Severity) if number[severity]]
        found = _listing(counts)
        return f"Healthy, with {found}." if self.is_healthy else f"Found {found}."

    @property
    def scope(self) -> str:
        """What was examined, and which checks lacked evidence."""
        left = f" {self.missing()}." if self.not_run else ""
        return f"Looked at {self.looked_at} with {_counted(len(self.checks), 'check')}.{left}"

    def missing(self, given_by: Mapping[str, str] | None = None) -> str:
        """Return how many checks did not run and what they need, as text; empty if all ran.

        Args:
            given_by: need of a check, as in ``not_run`` -> its name in the text.
        """
        names = given_by or {}
        wanted = Counter(names.get(need, need) for needs in self.not_run.values() for need in needs.split(", "))
        listed = ", ".join(f"{need} ({number})" for need, number in wanted.most_common())
        number = len(self.not_run)
        return f"{number} more {'needs' if number == 1 else 'need'} {listed}" if number else ""

    @property
    def groups(self) -> tuple[tuple[Finding, ...], ...]:
        """Findings grouped by check and severity, worst first."""
        return tuple(tuple(group) for _, group in groupby(self.findings, key=lambda each: (each.severity, each.check)))

    def to_json(self) -> str:
        """Return the diagnosis as a JSON document, see :mod:`steadynorm.doctor.document`."""
        from steadynorm.doctor.document import to_json  # which reads this module

        return to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Diagnosis:
        """Read what :meth:`to_json` wrote; needs msgspec.

        Raises:
            ValueError: not JSON, or another form or version.
        """
        from steadynorm.doctor.document import from_json

        return from_json(text)

    def to_sarif(self) -> str:
        """Return the diagnosis as a SARIF 2.1.0 log, see :mod:`steadynorm.doctor.sarif`."""
        from steadynorm.doctor.sarif import to_sarif

        return to_sarif(self)

    def _found(self) -> Iterator[str]:
        for group in self.groups:
            first = group[0]
            yield f"{first.severity} {first.check}: {places_of(group)}"
            yield f"  {first.problem}"
            if first.cost is not None:
                yield f"  cost: {first.cost.value:.3g} ± {first.cost.standard_error:.1g} ({first.cost.quantity})"
            yield f"  {first.remedy.advice}"


def places_of(findings: Sequence[Finding]) -> str:
    """Name the layers of findings; of many, those that differ in numbers alone as ``layer*.bn* (9 layers)``."""
    names = list(dict.fromkeys(printable_line(each.place) for each in findings))
    if len(names) <= MOST_NAMED:
        return _listing(names)
    families: dict[str, list[str]] = {}
    for name in names:
        families.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    shown = [f"{pattern} ({len(them)} layers)" if len(them) > 1 else them[0] for pattern, them in families.items()]
    if len(shown) <= MOST_NAMED:
        return _listing(shown)
    left = sum(len(them) for them in list(families.values())[MOST_NAMED - 1 :])
    return _listing([*shown[: MOST_NAMED - 1], f"{left} more layers"])


def _listing(items: Sequence[str]) -> str:
    return " and ".join([*([", ".join(items[:-1])] if len(items) > 1 else []), *items[-1:]])


def _cannot(line: str) -> str:
    return f"not looked at: {line}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

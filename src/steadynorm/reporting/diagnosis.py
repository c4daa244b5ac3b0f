"""Print a diagnosis in a terminal, with its model, data, scores and versions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from steadynorm.doctor import CHECKS, Cost, Diagnosis, Finding, Severity
from steadynorm.doctor.check import NEEDED
from steadynorm.doctor.diagnosis import places_of
from steadynorm.doctor.document import as_document
from steadynorm.printable import printable_line
from steadynorm.reporting.numbers import number, percent
from steadynorm.reporting.words import counted, listing

__all__ = [
    "Examination",
    "Treated",
    "as_content",
    "checks_as_markdown",
    "cost_text",
    "list_checks",
    "needs_text",
    "score_line",
    "show",
    "treatment_lines",
    "unmet_needs",
]

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}
GIVEN_BY = {
    "batches": "--data",
    "score": "--data with labels",
    "optimizer": "--optimizer",
    "reference": "--reference",
    "checkpoint": "--checkpoint",
    "ranks": "ranks= in Python",
    "step": "--accumulation or --world-size",
}
"""Part of the evidence that a check needs -> how to provide it."""
_NAMED = {NEEDED.get(part, part): part for part in GIVEN_BY}
"""Name in a diagnosis -> name of the part of the evidence."""
NARROW = 60
"""Terminal width from which the table has two columns."""
TREATED = "* --treat FILE does this, measures again, and undoes it where the score is worse."
BY = {
    "stored": "with the statistics that are stored",
    "batch": "with those of each batch",
}


@dataclass(frozen=True, kw_only=True)
class Treated:
    """Result of ``--treat``.

    Args:
        applied: every treatment that was tried, one line each.
        left: findings that only the user can act on.
        before: accuracy before the treatments, on data that statistics were not measured on; None if unknown.
        after: accuracy after the treatments, on the same data.
        file: file with the new weights; empty if nothing was kept.
        in_code: kept treatments that a weights file cannot store, one sentence each.
        remaining: diagnosis of a new model with the file's weights.
    """

    applied: tuple[str, ...]
    left: tuple[Finding, ...]
    before: float | None
    after: float | None
    file: str
    in_code: tuple[str, ...]
    remaining: Diagnosis | None = None


@dataclass(frozen=True, kw_only=True)
class Examination:
    """A diagnosis with its inputs.

    Args:
        diagnosis: the findings.
        model: name of the model.
        told: what was read from files, one sentence each.
        has_data: whether the model was run.
        scores: statistics used in evaluation (keys of :data:`BY`) -> accuracy; empty if unknown.
        command: the shell command.
        created: date and time, ISO 8601.
        config: the flags.
        versions: versions of packages.
        machine: the machine.
        treated: result of the treatment; None if it was not requested.
    """

    diagnosis: Diagnosis
    model: str
    told: tuple[str, ...] = ()
    has_data: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    created: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    treated: Treated | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether nothing worse than a note is found, or remains after a treatment."""
        left = self.treated.remaining if self.treated else None
        return (left or self.diagnosis).is_healthy


def as_content(examination: Examination) -> dict[str, Any]:
    """Return the JSON content: the diagnosis's document and its inputs."""
    return as_document(examination.diagnosis) | {
        "model": examination.model,
        "told": list(examination.told),
        "accuracy": dict(examination.scores),
        "command": examination.command,
        "created": examination.created,
        "treatment": None if examination.treated is None else _treatment(examination.treated),
    }


def _treatment(treated: Treated) -> dict[str, Any]:
    return {
        "applied": list(treated.applied),
        "left": [{"check": each.check, "layer": each.layer, "advice": each.remedy.advice} for each in treated.left],
        "accuracy": {"before": treated.before, "after": treated.after},
        "file": treated.file or None,
        "in_code": list(treated.in_code),
        "remaining": None if treated.remaining is None else as_document(treated.remaining),
    }


def show(examination: Examination, console: Console) -> None:
    """Print a diagnosis: three lines for a healthy model, else also the findings."""
    diagnosis = examination.diagnosis
    _line(console, diagnosis.headline, style="bold")
    for line in (_scope(diagnosis), score_line(examination), *map(_unread, diagnosis.unread)):
        _line(console, line)
    if diagnosis.findings:
        console.print()
        console.print(findings_table(diagnosis))
        if any(each.remedy.treatment for each in diagnosis):
            _line(console, TREATED, style="dim")
        checks = listing(list(dict.fromkeys(each.check for each in diagnosis)))
        _line(console, f"More on a check: steadynorm doctor --explain NAME ({checks})", style="dim")
    if examination.treated is not None:
        console.print()
        for line in treatment_lines(examination.treated):
            _line(console, line)


def treatment_lines(treated: Treated) -> list[str]:
    """Describe what a treatment did, what it could not do, and what remains, one line each."""
    lines = list(treated.applied) or ["Nothing that was found can be treated."]
    if treated.before is not None and treated.after is not None:
        lines.append(f"Accuracy {percent(treated.before)} before, {percent(treated.after)} after.")
    lines += [f"Left to you: {each.check} at {each.place}: {each.remedy.advice}" for each in treated.left]
    lines += treated.in_code
    lines.append(f"Written: {treated.file}" if treated.file else "No file was written, since no treatment was kept.")
    if treated.remaining is not None:
        lines.append(f"A new model with these weights: {treated.remaining.headline}")
        lines += [f"  {each[0].severity} {each[0].check} at {places_of(each)}" for each in treated.remaining.groups]
    return lines


def findings_table(diagnosis: Diagnosis) -> Table:
    """Lay out the findings: severity, layers, problem, remedy and cost."""
    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group in diagnosis.groups:
        first = group[0]
        body = Text()
        body.append(first.check, style="bold")
        body.append(f" at {places_of(group)}")
        if first.cost is not None:
            body.append(f", cost {cost_text(first.cost)}", style="bold")
        for text, style in _sentences(group):
            body.append("\n")
            body.append(printable_line(text), style=style)
        table.add_row(Text(str(first.severity), style=STYLES[first.severity]), body)
    return table


def list_checks(console: Console) -> None:
    """Print the checks with what they find and need; in a narrow terminal below the names."""
    below = console.width < NARROW
    table = Table(box=None, show_header=not below, padding=(0, 1, 0, 1))
    table.add_column("Check", overflow="fold", no_wrap=not below)
    if not below:
        table.add_column("Finds", overflow="fold")
    for check in CHECKS.values():
        needs = f" Needs {needs_text(', '.join(check.needs))}." if check.needs else ""
        worst = " Always a note." if check.only_notes else ""
        finds = Text.assemble(check.title, (needs + worst, "dim"))
        if below:
            table.add_row(Text.assemble((check.name, "bold"), "\n", finds, "\n"))
        else:
            table.add_row(Text(check.name), finds)
    console.print(table)


def checks_as_markdown() -> str:
    """Return the list of checks as a Markdown table, for the documentation."""
    rows = ["| check | finds | needs | at worst |", "|---|---|---|---|"]
    for check in CHECKS.values():
        needs = needs_text(", ".join(check.needs)) if check.needs else ""
        marked = re.sub(r"--[\w-]+|\w+=", lambda found: f"`{found[0]}`", needs)
        worst = "a note" if check.only_notes else ""
        rows.append(f"| `{check.name}` | {check.title} | {marked} | {worst} |")
    return "\n".join(rows) + "\n"


def cost_text(cost: Cost) -> str:
    """Format the cost of a fault with its standard error."""
    if cost.quantity == "accuracy":
        error = "" if cost.standard_error != cost.standard_error else f" ± {100 * cost.standard_error:.1f}"
        return f"{100 * cost.value:.1f}{error} points of accuracy"
    error = "" if cost.standard_error != cost.standard_error else f" ± {number(cost.standard_error, digits=2)}"
    return f"{number(cost.value)}{error} of {cost.quantity}"


def needs_text(needs: str) -> str:
    """Say how to provide what a check needs."""
    parts = [_NAMED.get(each, each) for each in needs.split(", ")]
    return listing([GIVEN_BY.get(each, each) for each in parts if not (each == "batches" and "score" in parts)])


def _sentences(group: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    first = group[0]
    yield first.problem, ""
    yield f"{first.remedy.advice}{' *' if first.remedy.treatment else ''}", ""


def score_line(examination: Examination) -> str:
    """Return a line with the accuracy for each kind of statistics."""
    if not examination.scores:
        return examination.told[-1] if examination.has_data else ""
    parts = [f"{percent(value)} {BY[name]}" for name, value in examination.scores.items()]
    return f"Accuracy {', '.join(parts)}. {examination.told[-1]}"


def unmet_needs(diagnosis: Diagnosis) -> dict[str, list[str]]:
    """Group the checks that could not run by how to provide what they need."""
    by_need: dict[str, list[str]] = {}
    for name, needs in diagnosis.not_run.items():
        by_need.setdefault(needs_text(needs), []).append(name)
    return by_need


def _scope(diagnosis: Diagnosis) -> str:
    """Say what was examined, and which flags the other checks need."""
    looked = f"Looked at {diagnosis.looked_at} with {counted(len(diagnosis.checks), 'check')}."
    missing = diagnosis.missing({name: GIVEN_BY[part] for name, part in _NAMED.items()})
    return f"{looked} {missing}; see --list." if missing else looked


def _unread(line: str) -> str:
    return f"Not looked at: {line}"


def _line(console: Console, text: str, *, style: str = "") -> None:
    if text:
        console.print(Text(printable_line(text), style=style), soft_wrap=not console.is_terminal)

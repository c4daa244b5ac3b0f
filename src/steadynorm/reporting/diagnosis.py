"""A diagnosis for people at a terminal, and what goes with it: model, data, scores, versions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from steadynorm.doctor import CHECKS, Cost, Diagnosis, Finding, Severity
from steadynorm.doctor.check import NEEDED
from steadynorm.doctor.document import as_document
from steadynorm.printable import printable_line
from steadynorm.reporting.numbers import number, percent
from steadynorm.reporting.words import listing

__all__ = ["Examination", "as_content", "cost_text", "layers_text", "list_checks", "show"]

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}
GIVEN_BY = {
    "batches": "--data",
    "score": "--data with labels",
    "optimizer": "optimizer= of steadynorm.diagnose",
    "reference": "reference= of steadynorm.diagnose",
    "checkpoint": "checkpoint= of steadynorm.diagnose",
    "ranks": "ranks= of steadynorm.diagnose",
    "step": "accumulation= or world_size= of steadynorm.diagnose",
}
"""Part of the evidence that a check needs -> how it is given."""
_NAMED = {NEEDED.get(part, part): part for part in GIVEN_BY}
"""What a diagnosis calls such a part -> its name."""
LISTED = 3
BY = {
    "stored": "with the statistics that are stored",
    "batch": "with those of each batch",
}


@dataclass(frozen=True, kw_only=True)
class Examination:
    """A diagnosis and how it came about.

    Args:
        diagnosis: what was found.
        model: what the model is called.
        told: what was read from files, a sentence each.
        has_data: whether the model was run.
        scores: statistics that are used in evaluation (keys of :data:`BY`) -> accuracy; empty where it is not known.
        command: the shell command.
        created: when, in ISO's form.
        config: the flags.
        versions: of packages.
        machine: on which it ran.
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


def as_content(examination: Examination) -> dict[str, Any]:
    """Give the JSON: the diagnosis's document, and beside it what it was made from."""
    return as_document(examination.diagnosis) | {
        "model": examination.model,
        "told": list(examination.told),
        "accuracy": dict(examination.scores),
        "command": examination.command,
        "created": examination.created,
    }


def show(examination: Examination, console: Console) -> None:
    """Print a diagnosis: three lines for a healthy model, else what was found as well."""
    diagnosis = examination.diagnosis
    _line(console, diagnosis.headline, style="bold")
    _line(console, f"{diagnosis.scope}")
    for line in (_score_line(examination) or _missing_line(examination), *map(_unread, diagnosis.unread)):
        _line(console, line)
    if diagnosis.findings:
        console.print()
        console.print(findings_table(diagnosis))
        checks = listing(list(dict.fromkeys(each.check for each in diagnosis)))
        _line(console, f"More on a check: steadynorm doctor --explain NAME ({checks})", style="dim")


def findings_table(diagnosis: Diagnosis) -> Table:
    """Lay out the findings: severity, and beside it where, what is wrong, what to do, and what it costs."""
    table = Table(box=None, show_header=False, padding=(0, 2, 1, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group in diagnosis.groups:
        first = group[0]
        body = Text()
        body.append(first.check, style="bold")
        body.append(f" at {layers_text(group)}")
        for text, style in _sentences(group):
            body.append("\n")
            body.append(printable_line(text), style=style)
        table.add_row(Text(str(first.severity), style=STYLES[first.severity]), body)
    return table


def list_checks(console: Console) -> None:
    """Print the checks, with what they find and what they need."""
    table = Table(Column("Check", no_wrap=True), "Finds", "Needs", box=None)
    for check in CHECKS.values():
        needs = needs_text(", ".join(check.needs)) if check.needs else ""
        table.add_row(Text(check.name), Text(check.title), Text(needs))
    console.print(table)


def layers_text(group: Sequence[Finding]) -> str:
    """Name the layers of findings, the first few of many."""
    names = [printable_line(each.place) for each in group]
    more = [f"{len(names) - LISTED} more layers"] if len(names) > LISTED + 1 else []
    return listing([*names[:LISTED], *more] if more else names)


def cost_text(cost: Cost) -> str:
    """Write what a fault costs, with its standard error."""
    if cost.quantity == "accuracy":
        error = "" if cost.standard_error != cost.standard_error else f" ± {100 * cost.standard_error:.1f}"
        return f"{100 * cost.value:.1f}{error} points of accuracy"
    error = "" if cost.standard_error != cost.standard_error else f" ± {number(cost.standard_error, digits=2)}"
    return f"{number(cost.value)}{error} of {cost.quantity}"


def needs_text(needs: str) -> str:
    """Say how a check is given what it needs."""
    parts = [_NAMED.get(each, each) for each in needs.split(", ")]
    return listing([GIVEN_BY.get(each, each) for each in parts if not (each == "batches" and "score" in parts)])


def remedy_text(finding: Finding) -> str:
    """Say whether ``--treat`` repairs it."""
    if finding.remedy.treatment:
        return f"--treat does this ({finding.remedy.treatment}), and keeps it only where the score is not worse."
    return "Only you can do this; --treat leaves it alone."


def _sentences(group: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    first = group[0]
    yield first.problem, ""
    yield first.remedy.advice, ""
    if first.cost is not None:
        yield f"Cost: {cost_text(first.cost)}.", "bold"
    yield remedy_text(first), "dim"


def _score_line(examination: Examination) -> str:
    """Give the accuracy by each kind of statistics."""
    if not examination.scores:
        return examination.told[-1] if examination.has_data else ""
    parts = [f"{percent(value)} {BY[name]}" for name, value in examination.scores.items()]
    return f"Accuracy {', '.join(parts)}. {examination.told[-1]}"


def _missing_line(examination: Examination) -> str:
    """Name the checks that could not run, by what they need."""
    by_need: dict[str, list[str]] = {}
    for name, needs in examination.diagnosis.not_run.items():
        by_need.setdefault(needs_text(needs), []).append(name)
    parts = [f"{', '.join(names)}: {need}" for need, names in by_need.items()]
    return f"Not run, with what would let them: {'; '.join(parts)}." if parts else ""


def _unread(line: str) -> str:
    return f"Not looked at: {line}"


def _line(console: Console, text: str, *, style: str = "") -> None:
    if text:
        console.print(Text(printable_line(text), style=style), soft_wrap=True)

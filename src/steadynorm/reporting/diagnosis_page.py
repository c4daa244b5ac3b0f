"""A diagnosis as one page, to be attached to an issue: what was found, why it harms, what to do, what was looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from steadynorm.doctor import CHECKS, Cost, Diagnosis, Finding, Severity
from steadynorm.printable import printable_line
from steadynorm.reporting.diagnosis import (
    Examination,
    cost_text,
    layers_text,
    remedy_text,
    score_line,
    treatment_lines,
    unmet_needs,
)
from steadynorm.reporting.numbers import NONE
from steadynorm.reporting.report import Block, Entry, Report, Section, Table, Text
from steadynorm.reporting.words import counted

__all__ = ["describe", "diagnosis_page"]

TONES = {Severity.ERROR: "chip error", Severity.WARNING: "chip warning", Severity.NOTE: "chip"}
LAYERS = 40
"""Layers of a check that are listed one by one."""


def diagnosis_page(examination: Examination) -> str:
    """Make the page; it needs no other file."""
    from steadynorm.reporting.build import page_alone  # pandas and Altair, which nothing else of the command needs

    head = {
        "command": printable_line(examination.command),
        "created": examination.created,
        "config": {},
        "resolved": {},
        "versions": dict(examination.versions),
        "machine": dict(examination.machine),
    }
    model = _shown(examination.model)
    return page_alone(head, describe(examination), eyebrow=f"steadynorm doctor · {model} · {examination.created[:10]}")


def describe(examination: Examination) -> Report:
    """Say what a diagnosis shows."""
    diagnosis = examination.diagnosis
    checks = dict.fromkeys(each.check for each in diagnosis)
    overview = _overview(diagnosis)
    said = [score_line(examination), *examination.told[: -1 if examination.has_data else None]]
    return Report(
        headline=diagnosis.headline.removesuffix("."),
        lead=_shown(f"Looked at {diagnosis.looked_at} with {len(diagnosis.checks)} checks."),
        table=overview,
        sections=(
            Section(
                title="What was found",
                short="Findings",
                blocks=(*(Text(_shown(line)) for line in said if line), overview if checks else None),
            ),
            *(_section(name, diagnosis.of(name)) for name in checks),
            Section(
                title="What was treated",
                short="Treatment",
                blocks=[Text(_shown(line)) for line in treatment_lines(examination.treated)]
                if examination.treated
                else (),
            ),
            Section(
                title="What could not be looked at",
                short="Not looked at",
                blocks=[Text(_shown(line)) for line in diagnosis.unread],
            ),
            Section(title="What was looked at", short="Checks", blocks=tuple(_checks(diagnosis))),
        ),
        method=(
            "The model was left as it was, bit for bit. Costs are differences between the same batches, with the "
            "standard error over batches; of what has no cost the severity is the check's own. An error means that "
            "outputs are wrong now or training stops, a warning that accuracy is lost or will be, and a note costs "
            "nothing that was measured.",
        ),
        finished=True,
    )


def _overview(diagnosis: Diagnosis) -> Table:
    return Table.of(
        diagnosis.groups,
        {
            "Check": lambda group: group[0].check,
            "Severity": lambda group: Entry(text=str(group[0].severity), tone=TONES[group[0].severity]),
            "Where": lambda group: layers_text(group),
            "Cost": lambda group: NONE if group[0].cost is None else cost_text(group[0].cost),
            "What to do": lambda group: _shown(group[0].remedy.advice),
        },
    )


def _section(name: str, findings: Sequence[Finding]) -> Section:
    """Say of one check what it found at which layer, why that harms, and what to do."""
    check = CHECKS.get(name)
    pages = {} if check is None else check.sections()
    return Section(
        title=name if check is None else _shown(check.title).removesuffix("."),
        short=name,
        blocks=(
            _layers(findings[:LAYERS]),
            Text(f"And {len(findings) - LAYERS} more layers.") if len(findings) > LAYERS else None,
            *(Text(_shown(f"What to do: {line}")) for line in dict.fromkeys(map(_advice, findings))),
            *(Text(f"{title} {_capital(pages[part])}") for part, title in _parts(pages)),
        ),
    )


def _advice(finding: Finding) -> str:
    return f"{finding.remedy.advice} {remedy_text(finding)}"


def _parts(pages: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Give the parts of a check's page that are shown, with what stands before them."""
    titles = {"Harm": "Why it harms:", "Remedy": "How safe that is:"}
    return ((part, title) for part, title in titles.items() if part in pages)


def _layers(findings: Sequence[Finding]) -> Table:
    """Give a row for each problem, with the layers that have it."""
    rows: dict[tuple[Severity, str, Cost | None], list[Finding]] = {}
    for each in findings:
        rows.setdefault((each.severity, each.problem, each.cost), []).append(each)
    columns: dict[str, Callable[[Sequence[Finding]], Entry | str]] = {
        "Layer": lambda row: Entry(text=_names(row, "place"), note=_names(row, "what")),
        "Severity": lambda row: Entry(text=str(row[0].severity), tone=TONES[row[0].severity]),
        "What is wrong": lambda row: _shown(row[0].problem),
    }
    if any(each.cost is not None for each in findings):
        columns["Cost"] = lambda row: NONE if row[0].cost is None else cost_text(row[0].cost)
    return Table.of(rows.values(), columns)


def _names(findings: Sequence[Finding], field: str) -> str:
    """List the layers, or what they are, without repetition."""
    return ", ".join(dict.fromkeys(printable_line(getattr(each, field)) for each in findings))


def _checks(diagnosis: Diagnosis) -> Iterator[Block]:
    """Name the checks that found nothing, and those that could not run."""
    silent = [name for name in diagnosis.checks if not diagnosis.of(name)]
    if silent:
        yield Text(f"{counted(len(silent), 'check')} ran and found nothing: {', '.join(silent)}.")
    for need, names in unmet_needs(diagnosis).items():
        yield Text(f"Not run, since {counted(len(names), 'check')} would need {need}: {', '.join(names)}.")


def _shown(text: str) -> str:
    """Write text of a docstring or a finding on a page: printable, and without the marks of code."""
    return printable_line(text).replace("``", "")


def _capital(text: str) -> str:
    return _shown(text[:1].upper() + text[1:])

"""Render a diagnosis as one page, to attach to an issue: findings, harm, remedies and what was examined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from steadynorm.doctor import CHECKS, Cost, Diagnosis, Finding, LayerSummary, Severity
from steadynorm.doctor.diagnosis import MOST_NAMED, places_of
from steadynorm.printable import printable_line
from steadynorm.reporting.diagnosis import (
    Examination,
    cost_text,
    score_line,
    treatment_lines,
    unmet_needs,
)
from steadynorm.reporting.numbers import NONE
from steadynorm.reporting.report import Block, Entry, Figure, Figures, Report, Section, Table, Text
from steadynorm.reporting.words import counted

__all__ = ["describe", "diagnosis_page"]

TONES = {Severity.ERROR: "chip error", Severity.WARNING: "chip warning", Severity.NOTE: "chip"}
LAYERS = 12
"""Largest number of a check's layers that are listed one by one."""
LABELS = 3
"""Largest number of faulty layers that are named in a figure."""
LABEL = 28
"""Largest number of characters of such a name."""
FOUND, OTHERS, SAMPLING = "layer found at fault", "layer", "expected from sampling"


def diagnosis_page(examination: Examination) -> str:
    """Render the page; it needs no other file."""
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
    """Build the report of a diagnosis."""
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
            Section(title="Layer by layer", short="Layers", blocks=(Figures(tuple(_figures(diagnosis))),)),
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
            "Where": lambda group: places_of(group),
            "Cost": lambda group: NONE if group[0].cost is None else cost_text(group[0].cost),
            "What to do": lambda group: _shown(group[0].remedy.advice),
        },
    )


def _figures(diagnosis: Diagnosis) -> Iterator[Figure]:
    """Plot every layer's distance from the batches, and what single layers recover if that was tried."""
    found = {each.layer for each in diagnosis if each.severity >= Severity.WARNING}
    places = list(enumerate(diagnosis.layers, 1))
    known = [(at, each) for at, each in places if each.distance is not None]
    labels = _labels([each for _, each in known if each.name in found])
    order = [OTHERS, FOUND] if found else [OTHERS]
    rows = [
        {"layer": at, "distance": each.distance, "kind": FOUND if each.name in found else OTHERS}
        | {"name": labels.get(each.name, "")}
        for at, each in known
    ]
    rows += [{"layer": at, "distance": each.sampling, "kind": SAMPLING, "name": ""} for at, each in known]
    options = {
        "x": "layer",
        "x_title": "batch norm, in the order of the model",
        "x_counts": True,
        "hue": "kind",
        "text": "name",
    }
    left = len(places) - len(known)
    if len(known) > 1:
        yield Figure(
            name="distance",
            title="Stored statistics from those of the batches",
            caption="Distance of each layer's running mean and variance from the moments of its inputs, in standard "
            "deviations, and the distance that sampling alone gives on average."
            + (f" Not shown: {counted(left, 'layer')} without numbers to compare." if left else ""),
            kind="points",
            data=rows,
            options=options | {"y": "distance", "y_title": "standard deviations", "order": [*order, SAMPLING]},
        )
    tried = [(at, each, each.won_back) for at, each in places if each.won_back is not None]
    labels = _labels([each for _, each, _ in tried if each.name in found])
    if len(tried) > 1:
        yield Figure(
            name="won-back",
            title="What each layer alone wins back",
            caption="Share of the gap between evaluation and the batches' own statistics that comes back when one "
            "layer alone takes the batch's. The first that wins much is the cause; later ones repair what it distorts.",
            kind="points",
            data=[
                {"layer": at, "share": share, "kind": FOUND if each.name in found else OTHERS}
                | {"name": labels.get(each.name, "")}
                for at, each, share in tried
            ],
            options=options | {"y": "share", "y_title": "won back", "order": order, "percent": True},
        )


def _labels(layers: Sequence[LayerSummary]) -> dict[str, str]:
    """Return the layers' labels, long names shortened to their end; none if there are too many."""
    names = {each.name: printable_line(each.name) for each in layers if len(layers) <= LABELS}
    return {name: shown if len(shown) <= LABEL else f"…{shown[1 - LABEL :]}" for name, shown in names.items()}


def _section(name: str, findings: Sequence[Finding]) -> Section:
    """Build the section of one check: findings by layer, harm and remedy."""
    check = CHECKS.get(name)
    pages = {} if check is None else check.sections()
    return Section(
        title=name if check is None else _shown(check.title).removesuffix("."),
        short=name,
        blocks=(
            _layers(findings),
            Text(f"These layers are: {_listed(findings)}.") if len(findings) > MOST_NAMED else None,
            *(Text(_shown(f"What to do: {line}")) for line in dict.fromkeys(map(_advice, findings))),
            *(Text(f"{title} {_capital(pages[part])}") for part, title in _parts(pages)),
        ),
    )


def _advice(finding: Finding) -> str:
    treatment = finding.remedy.treatment
    if not treatment:
        return f"{finding.remedy.advice} Only you can do this; --treat leaves it alone."
    return f"{finding.remedy.advice} --treat does this ({treatment}), and undoes it where the score is worse."


def _parts(pages: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the parts of a check's page to show, with their lead-in."""
    titles = {"Harm": "Why it harms:", "Remedy": "How safe that is:"}
    return ((part, title) for part, title in titles.items() if part in pages)


def _layers(findings: Sequence[Finding]) -> Table:
    """Build a table with a row for each problem and its layers."""
    rows: dict[tuple[Severity, str, Cost | None], list[Finding]] = {}
    for each in findings:
        rows.setdefault((each.severity, each.problem, each.cost), []).append(each)
    columns: dict[str, Callable[[Sequence[Finding]], Entry | str]] = {
        "Layer": lambda row: Entry(text=places_of(row), note=_kinds(row)),
        "Severity": lambda row: Entry(text=str(row[0].severity), tone=TONES[row[0].severity]),
        "What is wrong": lambda row: _shown(row[0].problem),
    }
    if any(each.cost is not None for each in findings):
        columns["Cost"] = lambda row: NONE if row[0].cost is None else cost_text(row[0].cost)
    return Table.of(rows.values(), columns)


def _kinds(findings: Sequence[Finding]) -> str:
    """List the kinds of the layers, without repetition."""
    return ", ".join(dict.fromkeys(printable_line(each.what) for each in findings))


def _listed(findings: Sequence[Finding]) -> str:
    names = list(dict.fromkeys(printable_line(each.place) for each in findings))
    return ", ".join(names[:LAYERS]) + (
        f" and {len(names) - LAYERS} more, which --json lists" if len(names) > LAYERS else ""
    )


def _checks(diagnosis: Diagnosis) -> Iterator[Block]:
    """Name the checks that found nothing, and those that could not run."""
    silent = [name for name in diagnosis.checks if not diagnosis.of(name)]
    if silent:
        yield Text(f"{counted(len(silent), 'check')} ran and found nothing: {', '.join(silent)}.")
    for need, names in unmet_needs(diagnosis).items():
        yield Text(f"Not run, since {counted(len(names), 'check')} would need {need}: {', '.join(names)}.")


def _shown(text: str) -> str:
    """Format text of a docstring or a finding for a page: printable, without code markup."""
    return printable_line(text).replace("``", "")


def _capital(text: str) -> str:
    return _shown(text[:1].upper() + text[1:])

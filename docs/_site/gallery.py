"""The gallery: reports, rendered by the program itself from the records in ``docs/results/``."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from steadynorm.bench.moved import moved_record
from steadynorm.deploy.report import describe as describe_export
from steadynorm.deploy.results import Artifact, Latency, Outcome
from steadynorm.doctor import Diagnosis
from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.lab.report import record_page
from steadynorm.reporting.diagnosis import Examination, Treated
from steadynorm.reporting.diagnosis_page import describe as describe_diagnosis
from steadynorm.reporting.diagnosis_page import diagnosis_page
from steadynorm.reporting.figures import live_script
from steadynorm.reporting.first_format import network_factors
from steadynorm.reporting.records import HEAD, Cell, Measurement, Record, read_record
from steadynorm.reporting.report import Report

__all__ = ["GALLERY", "RESULTS", "SCRIPT", "export_of", "files", "record_of", "told_of"]

RESULTS = Path(__file__).parents[1] / "results"
SCRIPT = "vega.js"
"""Makes the figures of all pages live."""

GALLERY = {
    "compare": "compare_cpu_20261122.json",
    "sweep": "sweep_quick_cpu_20261130",
    "shift": "shift_quick_cpu_20261130",
    "stream": "stream_quick_cpu_20261130",
    "landscape": "landscape_10000_cpu_20261130",
    "classic": "classic_quick_cpu_20261130",
    "scale": "scale_cpu_20261123.json",
    "statistics": "bench_statistics_cpu_20261122.json",
    "recalibration": "bench_recalibration_cpu_20261123.json",
    "doctor": "doctor_lost_statistics_cpu_20261130.json",
    "export": "export_resnet20_32_cpu_20261123.json",
}
"""Name of a page -> its record: a run directory, or a file with all that the page says."""


def files(names: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Give the files of the gallery, or those of some pages alone: their names, and what they hold."""
    yield SCRIPT, live_script()
    for name in names or GALLERY:
        yield f"{name}.html", _page(name)


def told_of(name: str) -> tuple[str, str]:
    """Give the headline of a page, and the command that measured what it says."""
    if name == "doctor":
        found = examination_of(RESULTS / GALLERY[name])
        return describe_diagnosis(found).headline, found.command
    record, report = _reported(name)
    return report.headline, record.command


def _page(name: str) -> str:
    if name == "doctor":
        return diagnosis_page(examination_of(RESULTS / GALLERY[name]))
    record, report = _reported(name)
    return record_page(record, report, script=SCRIPT)


def _reported(name: str) -> tuple[Record, Report]:
    place = RESULTS / GALLERY[name]
    content = {} if place.is_dir() else json.loads(place.read_text())
    if name == "export":
        record, outcome = export_of(content)
        return record, describe_export(record, outcome)
    if place.is_dir():
        record = read_record(place)
    else:
        record = moved_record(content) if "bench" in content else record_of(content)
    return record, EXPERIMENTS[name].describe(record)


def record_of(content: dict[str, Any], cells: Sequence[Cell] = ()) -> Record:
    """Turn the content of a ``summary.json`` back into the record behind it.

    Args:
        content: with its runs, which lack the norms of single layers.
        cells: that are no networks, of which a summary has averages alone.
    """
    return Record(**_head(content), cells=(*map(_network, content["runs"]), *cells))


def _network(head: dict[str, Any]) -> Cell:
    rows = [Measurement(quantity="parameters", value=head["parameters"])]
    for epoch in head["epochs"]:
        named = [(name, value) for name, value in epoch.items() if name != "epoch"]
        rows += [Measurement(step=epoch["epoch"], quantity=name, value=value) for name, value in named]
    if head["diverged_at_step"] is not None:
        rows.append(Measurement(step=head["diverged_at_step"], quantity="diverged", value=1.0))
    return Cell(factors=network_factors(head["spec"]), status=head["status"], measurements=tuple(rows))


def export_of(content: dict[str, Any]) -> tuple[Record, Outcome]:
    """Turn the ``summary.json`` of an export back into its record and outcome."""
    outcome, made = content["outcome"], []
    for one in outcome["artifacts"]:
        made.append(Artifact(**one | {"latency": Latency(**one["latency"]) if one["latency"] else None}))
    found = Outcome(**outcome | {"steps": tuple(outcome["steps"]), "artifacts": tuple(made)})
    return Record(**_head(content)), found


def _head(content: dict[str, Any]) -> dict[str, Any]:
    return {name: content[name] for name in HEAD}


def examination_of(path: Path) -> Examination:
    """Read what ``steadynorm doctor --treat OUT --json FILE`` wrote of a model that was run on labelled data."""
    text = path.read_text()
    content = json.loads(text)
    return Examination(
        diagnosis=Diagnosis.from_json(text),
        model=content["model"],
        told=tuple(content["told"]),
        has_data=True,
        scores=content["accuracy"],
        command=content["command"],
        created=content["created"],
        versions={"steadynorm": content["steadynorm"]},
        treated=_treated(content["treatment"]),
    )


def _treated(content: dict[str, Any]) -> Treated:
    """Read a treatment that left nothing to the user."""
    return Treated(
        applied=tuple(content["applied"]),
        left=(),
        before=content["accuracy"]["before"],
        after=content["accuracy"]["after"],
        file=content["file"],
        in_code=tuple(content["in_code"]),
        remaining=Diagnosis.from_json(json.dumps(content["remaining"])),
    )

"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping

from steadynorm.lab.analysis import pictures
from steadynorm.lab.records import Record
from steadynorm.lab.report.compare.expectations import expectations
from steadynorm.lab.report.compare.headline import headline, setting
from steadynorm.lab.report.compare.summary import is_finished, summarise
from steadynorm.lab.report.compare.tables import headline_table
from steadynorm.lab.report.compare.wording import batches_label, data_label
from steadynorm.lab.report.compare.writeup import class_count, expected_from, schedule, tuning_note, writeup
from steadynorm.lab.report.figure import Drawing
from steadynorm.lab.report.page import facts, render_page

__all__ = ["make_page"]

SECTIONS = {
    "result": "Result",
    "expectations": "Expectations",
    "curves": "Curves",
    "gradients": "Gradients and time",
    "tuning": "Learning rates",
    "method": "Method",
    "setup": "Configuration",
    "again": "Run it again",
}

FILES = (
    ("report.ipynb", "this report as a notebook with its data inside, executed"),
    ("summary.json", "the numbers above, for programs"),
    ("config.json", "what was asked for, versions, machine"),
    ("runs.json", "every trained network and how it ended"),
    ("metrics.csv", "one row for each network and epoch"),
    ("gradient_norms.csv", "one row for each network, epoch and weight"),
    ("figures/", "every figure as PNG and SVG"),
    ("checkpoints/", "the trained networks"),
)


def make_page(record: Record, drawings: Mapping[str, tuple[Drawing, ...]]) -> str:
    """Make ``report.html``: one file that needs nothing else.

    Args:
        record: the experiment.
        drawings: its figures by section, as :func:`draw_all` gives them.
    """
    found = {picture.name: [summarise(record, arm) for arm in picture.arms] for picture in pictures(record)}
    shared, tuned = found["shared"], found.get("tuned", [])
    optional = ("curves", "gradients", "tuning")
    return render_page(
        "compare.html",
        title=headline(record, shared),
        eyebrow=_eyebrow(record),
        lead=setting(record, shared),
        notice=_notice(record),
        sections=[(key, name) for key, name in SECTIONS.items() if key not in optional or drawings.get(key)],
        headline=headline_table(record, shared),
        writeup=writeup(record, shared),
        expected_from=expected_from(record),
        expectations=expectations(record, shared),
        drawings=drawings,
        tuned=headline_table(record, tuned, with_rate=True) if tuned else None,
        tuning_note=tuning_note(record, tuned),
        data=data_label(record),
        schedule=schedule(record),
        batches=batches_label(record),
        classes=class_count(record),
        config=record.config,
        resolved=record.resolved,
        config_facts=facts(record.config),
        resolved_facts=facts(record.resolved),
        versions_facts=facts(record.versions),
        machine_facts=facts(record.machine),
        command=record.command,
        files=FILES,
        version=record.versions.get("steadynorm", ""),
        created=_day(record),
    )


def _eyebrow(record: Record) -> str:
    quick = " · quick look" if record.config["quick"] else ""
    return f"steadynorm {record.experiment} · {data_label(record)} · {_day(record)}{quick}"


def _notice(record: Record) -> dict[str, str] | None:
    if is_finished(record):
        return None
    ended = sum(run.status in ("finished", "diverged") for run in record.runs)
    return {
        "text": f"This experiment is not complete: {ended} of {len(record.runs)} networks have ended.",
        "command": "steadynorm compare --resume DIR",
    }


def _day(record: Record) -> str:
    return record.created[:10]

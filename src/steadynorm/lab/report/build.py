"""Build the report of whichever experiment a run directory holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from steadynorm.lab.describe import data_label
from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Record, read_record
from steadynorm.reporting.report import Report
from steadynorm.reporting.words import listing

__all__ = ["build_report", "head_of", "write_record_report"]

OF_ALL = (("config.json", "what was asked for, versions, machine"),)
OF_RUNS = (
    ("runs.json", "every trained network and how it ended"),
    ("metrics.csv", "one row for each network and epoch"),
    ("gradient_norms.csv", "one row for each network, epoch and weight"),
    ("checkpoints/", "the trained networks"),
)
OF_CELLS = (
    ("cells.json", "every cell of the grid"),
    ("measurements.csv", "one row for each number that was measured in a cell"),
)


def build_report(directory: Path) -> Path:
    """Build the report of an experiment from its run directory; see :func:`steadynorm.reporting.build.write_report`.

    The record may be of an interrupted experiment.

    Args:
        directory: the run directory.

    Returns:
        path of ``report.html``.

    Raises:
        UserError: the directory holds no record, a damaged one, or one of an unknown experiment; or the
            notebook could not be executed, in which case everything else has been written.
    """
    record = read_record(directory)
    if record.experiment not in EXPERIMENTS:
        raise UserError(
            f"{directory}: a report needs the record of a known experiment ({', '.join(EXPERIMENTS)}), "
            f"got {record.experiment!r}. Use the version of steadynorm that wrote it."
        )
    files = [*(OF_RUNS if record.runs else ()), *(OF_CELLS if record.cells else ())]
    return write_record_report(directory, record, EXPERIMENTS[record.experiment].describe(record), files=files)


def write_record_report(directory: Path, record: Record, report: Report, *, files: Sequence[tuple[str, str]]) -> Path:
    """Write what a report says of a record; see :func:`steadynorm.reporting.build.write_report`."""
    from steadynorm.reporting.build import write_report  # pandas and Altair, which no other part of a command needs

    head = head_of(record)
    missing = "" if report.finished else _missing(record)
    return write_report(directory, head, report, files=[*OF_ALL, *files], eyebrow=_eyebrow(record), missing=missing)


def head_of(record: Record) -> dict[str, Any]:
    """Give what a record says of itself: all but its networks and cells."""
    return {one.name: getattr(record, one.name) for one in fields(record) if one.name not in ("runs", "cells")}


def _eyebrow(record: Record) -> str:
    quick = " · quick look" if record.config["quick"] else ""
    return f"steadynorm {record.experiment} · {data_label(record)} · {record.created[:10]}{quick}"


def _missing(record: Record) -> str:
    ended = sum(run.status in ("finished", "diverged") for run in record.runs)
    measured = sum(cell.is_measured for cell in record.cells)
    counts = [f"{ended} of {len(record.runs)} networks have ended"] if record.runs else []
    counts += [f"{measured} of {len(record.cells)} cells are measured"] if record.cells else []
    return f"This experiment is not complete: {listing(counts) or 'nothing is measured yet'}."

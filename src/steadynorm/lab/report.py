"""Build the report of the experiment in a run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steadynorm.lab.describe.names import data_label
from steadynorm.lab.experiment import check_record
from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell, Record, format_of, head_of, read_record
from steadynorm.reporting.report import Report
from steadynorm.reporting.words import listing

__all__ = ["build_report", "record_page", "write_record_report"]

OF_ALL = (("config.json", "configuration, versions, machine"),)
CELLS = (
    ("cells.json", "every network and cell of the grid, and how it ended"),
    ("measurements.csv", "one row for each number that was measured"),
)
FIRST_FORMAT = (
    ("runs.json", "every trained network and how it ended"),
    ("metrics.csv", "one row for each network and epoch"),
    ("gradient_norms.csv", "one row for each network, epoch and weight"),
)
NETWORKS = (("checkpoints/", "the trained networks"),)


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
    experiment = EXPERIMENTS[record.experiment]
    try:
        check_record(experiment, record)
        report = experiment.describe(record)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error
    files = [*(FIRST_FORMAT if format_of(directory) == 1 else CELLS), *(NETWORKS if record.networks else ())]
    return write_record_report(directory, record, report, files=files)


def write_record_report(directory: Path, record: Record, report: Report, *, files: Sequence[tuple[str, str]]) -> Path:
    """Write the report of a record; see :func:`steadynorm.reporting.build.write_report`."""
    from steadynorm.reporting.build import (
        write_report,
    )  # imports pandas and Altair, which no other part of a command needs

    head, told = head_of(record), _told(record, report)
    return write_report(directory, head, report, files=[*OF_ALL, *files], **told)


def record_page(record: Record, report: Report, *, script: str = "") -> str:
    """Make the page of a record without files beside it; see :func:`steadynorm.reporting.build.page_alone`."""
    from steadynorm.reporting.build import page_alone

    return page_alone(head_of(record), report, script=script, **_told(record, report))


def _told(record: Record, report: Report) -> dict[str, str]:
    return {"eyebrow": _eyebrow(record), "missing": "" if report.finished else _missing(record)}


def _eyebrow(record: Record) -> str:
    quick = " · quick look" if record.config.get("quick") else ""
    return f"steadynorm {record.experiment} · {data_label(record)} · {record.created[:10]}{quick}"


def _missing(record: Record) -> str:
    networks, cells = record.networks, [cell for cell in record.cells if not cell.is_network]
    counts = [f"{_ended(networks)} of {len(networks)} networks have ended"] if networks else []
    counts += [f"{_ended(cells)} of {len(cells)} cells are measured"] if cells else []
    # A search plans its next networks from the finished ones.
    is_open = counts and all(cell.has_ended for cell in record.cells)
    rest = " of those planned so far; more follow from what they show" if is_open else ""
    return f"This experiment is not complete: {listing(counts) or 'nothing is measured yet'}{rest}."


def _ended(cells: Sequence[Cell]) -> int:
    return sum(cell.has_ended for cell in cells)

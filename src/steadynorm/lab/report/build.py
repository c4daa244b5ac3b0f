"""The door of this room: build the report of whichever experiment a run directory holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from steadynorm.lab.failure import UserError
from steadynorm.lab.files import write_bytes, write_text
from steadynorm.lab.place import check_inside, file_in
from steadynorm.lab.records import Record, read_record
from steadynorm.lab.report.classic.document import make_report as make_classic
from steadynorm.lab.report.compare.document import make_report as make_compare
from steadynorm.lab.report.compare.notebook import make_notebook
from steadynorm.lab.report.document import Report, Section, Text, as_json
from steadynorm.lab.report.landscape.document import make_report as make_landscape
from steadynorm.lab.report.notebook import NotebookFailure, as_text, execute
from steadynorm.lab.report.page import facts, render_page
from steadynorm.lab.report.scale.document import make_report as make_scale
from steadynorm.lab.report.shift.document import make_report as make_shift
from steadynorm.lab.report.stream.document import make_report as make_stream
from steadynorm.lab.report.sweep.document import make_report as make_sweep
from steadynorm.lab.report.wording import data_label, listing

__all__ = ["build_report", "write_page", "write_report"]

REPORTS: dict[str, Callable[[Record], Report]] = {
    "compare": make_compare,
    "sweep": make_sweep,
    "shift": make_shift,
    "scale": make_scale,
    "stream": make_stream,
    "landscape": make_landscape,
    "classic": make_classic,
}
"""What each experiment's report says, by the name of its command."""

Files = Sequence[tuple[str, str]]
"""Names in a run directory and what they hold."""

FILES_OF_ALL = (
    ("summary.json", "the numbers above, for programs"),
    ("config.json", "what was asked for, versions, machine"),
    ("figures/", "every figure as PNG and SVG"),
)
FILES_OF_RUNS = (
    ("runs.json", "every trained network and how it ended"),
    ("metrics.csv", "one row for each network and epoch"),
    ("gradient_norms.csv", "one row for each network, epoch and weight"),
    ("checkpoints/", "the trained networks"),
)
FILES_OF_CELLS = (
    ("cells.json", "every cell of the grid"),
    ("measurements.csv", "one row for each number that was measured in a cell"),
)
NOTEBOOK = ("report.ipynb", "this report as a notebook with its data inside, executed")


def build_report(directory: Path) -> Path:
    """Build the report of an experiment from its run directory.

    Writes ``summary.json``, ``figures/*.png`` and ``*.svg``, ``report.html`` and, of a comparison, ``report.ipynb``
    (executed) into the directory.  Each file is whole or absent, and building again gives the same bytes.  The record
    may be of an interrupted experiment.

    Args:
        directory: the run directory.

    Returns:
        path of ``report.html``.

    Raises:
        UserError: the directory holds no record, a damaged one, or one of an unknown experiment; or the
            notebook could not be executed, in which case everything else has been written.
    """
    record = read_record(directory)
    if record.experiment not in REPORTS:
        raise UserError(
            f"{directory}: a report needs the record of a known experiment ({', '.join(REPORTS)}), "
            f"got {record.experiment!r}. Use the version of steadynorm that wrote it."
        )
    page = write_page(directory, record)
    if record.experiment == "compare":
        _write_notebook(directory, record, page)
    return page


def write_page(directory: Path, record: Record) -> Path:
    """Write everything but the notebook; return the page's path."""
    return write_report(directory, record, REPORTS[record.experiment](record), files=_files(record))


def write_report(directory: Path, record: Record, report: Report, *, files: Files) -> Path:
    """Write ``summary.json``, ``figures/`` and ``report.html`` of a report.

    Args:
        directory: where they go.
        record: what the report is of.
        report: what it says.
        files: name in the directory -> what it holds, for the page's list; the figures and the like are added.

    Returns:
        path of the page.

    Raises:
        UserError: the directory has a link through which files elsewhere would be written.
    """
    check_inside(directory)
    for drawing in report.drawings:
        write_bytes(file_in(directory / "figures", f"{drawing.name}.png"), drawing.png)
        write_bytes(file_in(directory / "figures", f"{drawing.name}.svg"), drawing.svg)
    write_text(directory / "summary.json", json.dumps(as_json(record, report), indent=2, allow_nan=False) + "\n")
    page = directory / "report.html"
    write_text(page, _page(record, report, files))
    return page


def _write_notebook(directory: Path, record: Record, page: Path) -> None:
    notebook = make_notebook(record)
    try:
        execute(notebook, directory)
    except NotebookFailure as failure:
        raise UserError(
            f"{directory / 'report.ipynb'}: the notebook has to run once, got {failure}. "
            f"It was written without results; the report itself is complete: {page}"
        ) from failure
    finally:
        write_text(directory / "report.ipynb", as_text(notebook))


def _page(record: Record, report: Report, files: Files) -> str:
    """Make ``report.html``: one file that needs nothing else."""
    method = Section(
        key="method", title="How it was measured", short="Method", blocks=[Text(line) for line in report.method]
    )
    parts = [section for section in (*report.sections, method) if section.blocks]
    names = [(part.key, part.short or part.title) for part in parts]
    setup = (
        ("Configuration", facts(record.config)),
        ("What it became", facts(record.resolved)),
        ("Versions", facts(record.versions)),
        ("Machine", facts(record.machine)),
    )
    return render_page(
        "report.html",
        title=report.headline,
        eyebrow=_eyebrow(record),
        lead=report.lead,
        notice=None if report.finished else _notice(record),
        sections=[*names, ("setup", "Configuration"), ("again", "Run it again")],
        parts=parts,
        setup=setup,
        command=record.command,
        files=[*FILES_OF_ALL, *files],
        version=record.versions.get("steadynorm", ""),
        created=record.created[:10],
    )


def _files(record: Record) -> Files:
    notebook = [NOTEBOOK] if record.experiment == "compare" else []
    runs, cells = FILES_OF_RUNS if record.runs else (), FILES_OF_CELLS if record.cells else ()
    return [*notebook, *runs, *cells]


def _eyebrow(record: Record) -> str:
    quick = " · quick look" if record.config["quick"] else ""
    return f"steadynorm {record.experiment} · {data_label(record)} · {record.created[:10]}{quick}"


def _notice(record: Record) -> dict[str, str]:
    ended = sum(run.status in ("finished", "diverged") for run in record.runs)
    measured = sum(cell.is_measured for cell in record.cells)
    counts = [f"{ended} of {len(record.runs)} networks have ended"] if record.runs else []
    counts += [f"{measured} of {len(record.cells)} cells are measured"] if record.cells else []
    return {
        "text": f"This experiment is not complete: {listing(counts) or 'nothing is measured yet'}.",
        "command": f"steadynorm {record.experiment} --resume DIR",
    }

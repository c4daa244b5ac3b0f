"""The door of this room: build the report of whichever experiment a run directory holds."""

from __future__ import annotations

import json
from pathlib import Path

from steadynorm.lab.failure import UserError
from steadynorm.lab.files import write_bytes, write_text
from steadynorm.lab.records import Record, read_record
from steadynorm.lab.report.compare.figures import draw_all
from steadynorm.lab.report.compare.notebook import make_notebook
from steadynorm.lab.report.compare.page import make_page
from steadynorm.lab.report.compare.summary import as_json
from steadynorm.lab.report.notebook import NotebookFailure, as_text, execute

__all__ = ["build_report", "write_page"]


def build_report(directory: Path) -> Path:
    """Build the report of an experiment from its run directory.

    Writes ``summary.json``, ``figures/*.png`` and ``*.svg``, ``report.html`` and ``report.ipynb`` (executed)
    into the directory.  Each file is whole or absent, and building again gives the same bytes.  The record
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
    if record.experiment != "compare":
        raise UserError(
            f"{directory}: a report needs the record of a known experiment (compare), "
            f"got {record.experiment!r}. Use the version of steadynorm that wrote it."
        )
    page = write_page(directory, record)
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
    return page


def write_page(directory: Path, record: Record) -> Path:
    """Write everything but the notebook; return the page's path."""
    drawings = draw_all(record)
    for drawing in (drawing for section in drawings.values() for drawing in section):
        write_bytes(directory / "figures" / f"{drawing.name}.png", drawing.png)
        write_bytes(directory / "figures" / f"{drawing.name}.svg", drawing.svg)
    write_text(directory / "summary.json", json.dumps(as_json(record), indent=2, allow_nan=False) + "\n")
    page = directory / "report.html"
    write_text(page, make_page(record, drawings))
    return page

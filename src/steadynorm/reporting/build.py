"""Write the files of a report: ``summary.json``, ``figures/``, ``report.html`` and ``report.ipynb``."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steadynorm.reporting.failure import UserError
from steadynorm.reporting.figures import PALETTE, Drawing, draw, live_script
from steadynorm.reporting.files import write_bytes, write_text
from steadynorm.reporting.notebook import NotebookFailure, as_text, execute, make_notebook
from steadynorm.reporting.page import facts, render_page
from steadynorm.reporting.place import check_inside, file_in
from steadynorm.reporting.report import Figures, Report, Section, Text, as_json

__all__ = ["Files", "page_alone", "write_report"]

Files = Sequence[tuple[str, str]]
"""Names in a directory and what they hold."""

OF_ALL = (
    ("report.ipynb", "this report as a notebook with its data inside, executed"),
    ("summary.json", "the numbers above, for programs"),
    ("figures/", "every figure as PNG and SVG"),
)


def write_report(
    directory: Path, head: dict[str, Any], report: Report, *, files: Files, eyebrow: str, missing: str = ""
) -> Path:
    """Write a report into a directory. Each file is whole or absent, and writing again gives the same bytes.

    Args:
        directory: where it goes.
        head: what the record says of itself: experiment, command, created, config, resolved, versions, machine.
        report: what it says.
        files: name in the directory -> what it holds, for the page's list; those written here are added.
        eyebrow: line above the headline.
        missing: what an incomplete record still lacks, as a sentence; nothing where it is complete.

    Returns:
        path of the page.

    Raises:
        UserError: the directory has a link through which files elsewhere would be written; or the notebook could not
            be executed, in which case everything else has been written.
    """
    check_inside(directory)
    drawings = {figure.name: draw(figure) for figure in report.figures}
    for one in drawings.values():
        write_bytes(file_in(directory / "figures", f"{one.name}.png"), one.png)
        write_text(file_in(directory / "figures", f"{one.name}.svg"), one.svg)
    write_text(directory / "summary.json", json.dumps(as_json(head, report), indent=2, allow_nan=False) + "\n")
    page = directory / "report.html"
    write_text(page, _page(head, report, drawings, files=files, eyebrow=eyebrow, missing=missing))
    _write_notebook(directory, head, report, page)
    return page


def page_alone(head: dict[str, Any], report: Report, *, eyebrow: str, script: str = "", missing: str = "") -> str:
    """Render a page without the other files of :func:`write_report`.

    Args:
        head: as for :func:`write_report`; empty parts are left out.
        report: what it says.
        eyebrow: line above the headline.
        script: address of :func:`steadynorm.reporting.figures.live_script`, which several pages may share; empty for a
            page that needs no other file and runs nothing.
        missing: as for :func:`write_report`.
    """
    drawings = {figure.name: draw(figure) for figure in report.figures}
    return _page(head, report, drawings, files=None, eyebrow=eyebrow, missing=missing, script=script)


def _page(
    head: dict[str, Any],
    report: Report,
    drawings: dict[str, Drawing],
    *,
    files: Files | None,
    eyebrow: str,
    missing: str,
    script: str = "",
) -> str:
    """Render ``report.html``; if ``files`` is None, without other files and with this script, if any."""
    method = Section(title="How it was measured", short="Method", blocks=[Text(line) for line in report.method])
    parts = [section for section in (*report.sections, method) if section.shown]
    setup = [
        ("Configuration", facts(head["config"])),
        ("What it became", facts(head["resolved"])),
        ("Versions", facts(head["versions"])),
        ("Machine", facts(head["machine"])),
    ]
    setup = [(name, pairs) for name, pairs in setup if pairs]
    notice = {"text": missing, "command": f"steadynorm {head['experiment']} --resume DIR"} if missing else None

    live = ""
    if drawings and files is not None:
        live = f"<script>{live_script()}</script>"
    elif drawings and script:
        live = f'<script src="{html.escape(script)}"></script>'

    def drawn(block: Figures) -> list[Drawing]:
        return [drawings[figure.name] for figure in block.items]

    return render_page(
        "report.html",
        title=report.headline,
        eyebrow=eyebrow,
        lead=report.lead,
        notice=notice,
        sections=[
            *((part.key, part.short or part.title) for part in parts),
            *([("setup", "Configuration")] if setup else []),
            *([("again", "Run it again")] if head["command"] else []),
        ],
        parts=parts,
        drawn=drawn,
        setup=setup,
        command=head["command"],
        files=None if files is None else [*OF_ALL, *files],
        version=head["versions"].get("steadynorm", ""),
        created=head["created"][:10],
        palette=PALETTE,
        live=live,
    )


def _write_notebook(directory: Path, head: dict[str, Any], report: Report, page: Path) -> None:
    notebook = make_notebook(head, report)
    try:
        execute(notebook, directory)
    except NotebookFailure as failure:
        raise UserError(
            f"{directory / 'report.ipynb'}: the notebook has to run once, got {failure}. "
            f"It was written without results; the report itself is complete: {page}"
        ) from failure
    finally:
        write_text(directory / "report.ipynb", as_text(notebook))

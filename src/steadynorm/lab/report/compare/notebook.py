"""The notebook of a comparison: its data inside, so that it runs anywhere with matplotlib alone."""

from __future__ import annotations

import csv
import io
import json
import re
from importlib import resources
from typing import Any

from steadynorm.lab.analysis import pictures
from steadynorm.lab.records import Record
from steadynorm.lab.report.compare.expectations import expectations
from steadynorm.lab.report.compare.headline import headline, setting
from steadynorm.lab.report.compare.summary import summarise
from steadynorm.lab.report.compare.writeup import expected_from, tuning_note, writeup
from steadynorm.lab.report.figure import SERIES
from steadynorm.lab.report.notebook import CellSource, as_triple_quoted, make
from steadynorm.lab.report.wording import arm_label, position

__all__ = ["make_notebook"]

METRICS = (
    "epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy",
    "grad_norm_mean", "grad_norm_p5", "grad_norm_p95",
)  # fmt: skip


def make_notebook(record: Record) -> Any:  # noqa: ANN401 - nbformat's own node type, untyped
    """Make the notebook, not yet run.

    Its code cells are the ``# %%`` parts of ``templates/compare_notebook.txt``; the first one holds the data.
    """
    found = {picture.name: [summarise(record, arm) for arm in picture.arms] for picture in pictures(record)}
    shared, tuned = found["shared"], found.get("tuned", [])
    lines = [f"# {headline(record, shared)}", setting(record, shared), f"Made again with: {record.command}"]
    cells = [
        _prose("about", lines[0], lines[1], lines[2]),
        CellSource(name="data", kind="code", source=_data(record)),
    ]
    for title, code in _parts().items():
        name = re.sub(r"\W+", "-", title.lower())
        cells.append(_prose(f"about-{name}", f"## {title}"))
        cells.append(CellSource(name=name, kind="code", source=code))
    verdicts = [f"- {item.verdict}: {item.claim} {item.measured}" for item in expectations(record, shared)]
    cells.append(_prose("write-up", "## Write-up", *writeup(record, shared)))
    if tuned:
        cells.append(_prose("rates", "## Each at its own learning rate", tuning_note(record, tuned)))
    cells.append(_prose("expectations", "## What was expected", expected_from(record), "\n".join(verdicts)))
    return make(cells)


def _prose(name: str, *paragraphs: str) -> CellSource:
    return CellSource(name=name, kind="markdown", source="\n\n".join(_plain(text) for text in paragraphs))


def _plain(text: str) -> str:
    """Keep what comes from a record from being read as markup."""
    return re.sub(r"([\\`*_\[\]<>$&~|])", r"\\\1", text)


def _parts() -> dict[str, str]:
    """Give the code cells by title."""
    template = resources.files("steadynorm.lab.report") / "templates" / "compare_notebook.txt"
    _, *parts = re.split(r"^# %% (.+)\n", template.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _data(record: Record) -> str:
    shared, *_ = pictures(record)
    arms = {
        arm.arm: {
            "label": arm_label(arm.arm).replace("$", r"\$"),  # or matplotlib reads a formula
            "color": SERIES[position(record, arm.arm) % len(SERIES)],
            "runs": [run.spec.name for run in arm.runs],
        }
        for arm in shared.arms
    }
    runs = [run for arm in shared.arms for run in arm.runs]
    metrics = [(run.spec.name, *(getattr(row, name) for name in METRICS)) for run in runs for row in run.epochs]
    layers = [(run.spec.name, row.epoch, row.layer, f"{row.mean:.6g}") for run in runs for row in run.layers]
    diverged = {run.spec.name: run.diverged_at_step for run in runs if run.status == "diverged"}
    return "\n".join(
        [
            "# What was measured at the shared learning rate; the cells below need nothing but this.",
            "import csv, io, json",
            "",
            f"ARMS = json.loads({as_triple_quoted(json.dumps(arms, indent=1))})",
            f"DIVERGED = json.loads({as_triple_quoted(json.dumps(diverged))})",
            f"METRICS = {as_triple_quoted(_table(('run', *METRICS), metrics))}",
            f"LAYERS = {as_triple_quoted(_table(('run', 'epoch', 'layer', 'mean'), layers))}",
        ]
    )


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return out.getvalue()

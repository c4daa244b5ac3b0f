"""Run directories in the first format, as version 0.1 wrote them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from steadynorm.reporting.first_format import EPOCH, NORMS
from steadynorm.reporting.records import Cell, Record, head_of

__all__ = ["write_first_format"]

USUAL = {"purpose": "compare", "batch_size": None, "depth": None, "variant": ""}


def write_first_format(directory: Path, record: Record) -> None:
    """Write a record as it was written then."""
    cells = [cell for cell in record.cells if not cell.is_network]
    _write_json(directory / "config.json", head_of(record))
    _write_json(directory / "runs.json", [_head(cell) for cell in record.networks])
    epochs = [
        [cell.name, epoch, *(cell.series(name)[epoch] for name in EPOCH)]
        for cell in record.networks
        for epoch in cell.series("val_loss")
    ]
    _write_table(directory / "metrics.csv", ["run", "epoch", *EPOCH], epochs)
    norms = [
        [cell.name, epoch, weight, *(cell.series(f"grad_norm_{name}", weight)[epoch] for name in NORMS)]
        for cell in record.networks
        for epoch in cell.series("val_loss")
        for weight in cell.values("grad_norm_mean")
        if weight
    ]
    _write_table(directory / "gradient_norms.csv", ["run", "epoch", "layer", *NORMS], norms)
    if cells:
        heads = [
            {"name": cell.name, "factors": cell.factors, "seconds": cell.seconds if cell.has_ended else None}
            for cell in cells
        ]
        _write_json(directory / "cells.json", heads)
        rows = [
            [cell.name, row.subject, row.step, row.quantity, row.value] for cell in cells for row in cell.measurements
        ]
        _write_table(directory / "measurements.csv", ["cell", "subject", "step", "quantity", "value"], rows)


def _head(cell: Cell) -> dict[str, Any]:
    return (
        USUAL
        | cell.factors
        | {
            "name": cell.name,
            "status": cell.status,
            "diverged_at_step": cell.diverged_at_step,
            "parameters": int(cell.series("parameters").get(0, 0)),
        }
    )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows([columns, *rows])

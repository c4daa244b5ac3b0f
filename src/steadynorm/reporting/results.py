"""The numbers of a summary as a table for the terminal, and its verdicts."""

from __future__ import annotations

import json
from typing import Any

from rich.markup import escape
from rich.table import Table

from steadynorm.printable import printable

__all__ = ["read_summary", "results_table", "verdict_lines"]


def read_summary(text: str) -> dict[str, Any]:
    """Read the content of a ``summary.json``, its text made printable."""
    content: dict[str, Any] = _printable(json.loads(text))
    return content


def results_table(summary: dict[str, Any]) -> Table:
    """Lay out the table of a ``summary.json``."""
    content = summary["table"]
    table = Table(*content["columns"], box=None)
    for row in content["rows"]:
        table.add_row(*(escape(cell) for cell in row))
    return table


def verdict_lines(summary: dict[str, Any]) -> list[str]:
    """Give the expectations of a ``summary.json`` with their verdicts, a line each."""
    return [f"{item['verdict']}: {item['claim']} {item['measured']}" for item in summary["expectations"]]


def _printable(value: Any) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value

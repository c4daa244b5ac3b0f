"""The numbers of a summary as a table for the terminal, and its verdicts."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

__all__ = ["results_table", "verdict_lines"]


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

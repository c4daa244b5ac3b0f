"""The numbers of a summary as a table for the terminal, and its verdicts."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from steadynorm.printable import printable

__all__ = ["fitting_table", "read_summary", "results_table", "verdict_lines"]


def read_summary(text: str) -> dict[str, Any]:
    """Read the content of a ``summary.json``, its text made printable."""
    content: dict[str, Any] = _printable(json.loads(text))
    return content


def results_table(summary: dict[str, Any]) -> Table:
    """Lay out the table of a ``summary.json``."""
    content = summary["table"]
    table = Table(*(Column(each, overflow="fold") for each in content["columns"]), box=None)
    for row in content["rows"]:
        table.add_row(*(escape(cell) for cell in row))
    return table


def fitting_table(summary: dict[str, Any], console: Console) -> Table:
    """Lay it out as wide as the console is: where words would be broken in two, a line for each cell."""
    table = results_table(summary)
    if sum(_longest_word(column) + 2 for column in table.columns) <= console.width:
        return table
    name = Column(overflow="fold", max_width=console.width // 3)
    lines = Table(name, Column(overflow="fold"), box=None, show_header=False)
    for row in summary["table"]["rows"]:
        for column, cell in zip(summary["table"]["columns"], row, strict=True):
            lines.add_row(column, escape(cell))
        lines.add_row()
    return lines


def _longest_word(column: Column) -> int:
    return max(len(word) for cell in (column.header, *column.cells) for word in str(cell).split() or [""])


def verdict_lines(summary: dict[str, Any]) -> list[str]:
    """Return the expectations of a ``summary.json`` with their verdicts, a line each."""
    return [f"{item['verdict']}: {item['claim']} {item['measured']}" for item in summary["expectations"]]


def _printable(value: Any) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return printable(value) if isinstance(value, str) else value

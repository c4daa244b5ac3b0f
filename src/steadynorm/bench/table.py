"""The record of a benchmark as a table for a page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from steadynorm.bench.record import Json
from steadynorm.reporting.report import Entry, Table

__all__ = ["markdown", "show"]


def markdown(record: Json, what: str, table: Table) -> str:
    """Write a table in Markdown, under a line on its content, machine and date."""
    machine, versions = record["machine"], record["versions"]
    where = machine["accelerator"] or f"{machine['processor']}, {record['threads']} threads"
    rows = [list(table.columns), ["---"] * len(table.columns), *(map(_written, row) for row in table.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return f"{what}; {where}; torch {versions['torch']}, {record['created'][:10]}.\n\n" + "\n".join(lines) + "\n"


def _written(one: Entry) -> str:
    return f"{one.text} ({one.note})" if one.note else one.text


def show(path: str, form: str = "") -> Callable[[Json], str]:
    """Return a column that shows an item's value under keys joined by dots; empty without one."""

    def cell(item: Json) -> str:
        value: Any = item
        for key in path.split("."):
            value = value.get(key) if value else None
        return f"{value:{form}}" if value else ""

    return cell

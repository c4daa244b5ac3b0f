"""Compute the claimed rates from rows, and list every failure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["failures", "rates", "table"]

Rows = Sequence[Mapping[str, Any]]
REPAIRED = 0.9
"""Fraction of the restorable accuracy that a repair must restore to count."""


def rates(rows: Rows) -> dict[str, tuple[int, int]]:
    """Count, for each claim, the cases in which it holds and all its cases."""
    faulty, healthy = [row for row in rows if row["fault"]], [row for row in rows if row["variant"]]
    placed = [row for row in faulty if row["localisable"]]
    treated = [row for row in faulty if row["treated"] is not None]
    spoken = [check for row in rows for check in row["found"]]
    false = [check for row in rows for check in row["false"]]
    return {
        "recall": (sum(row["caught"] for row in faulty), len(faulty)),
        "precision": (len(spoken) - len(false), len(spoken)),
        "healthy and silent": (sum(not row["found"] for row in healthy), len(healthy)),
        "right layer": (sum(row["placed"] for row in placed), len(placed)),
        "repaired": (sum(share_won_back(row) >= REPAIRED for row in treated), len(treated)),
    }


def share_won_back(row: Mapping[str, Any]) -> float:
    """Return the fraction of the restorable accuracy; a model that cannot be measured has lost all above chance."""
    faulty = 0.1 if row["faulty"] is None else row["faulty"]
    return float((row["treated"] - faulty) / (row["attainable"] - faulty))


def table(columns: Mapping[str, Rows]) -> str:
    """Return the rates as a table in Markdown, with those of the rivals and the time; a column for each set of rows."""
    found = [rates(rows) for rows in columns.values()]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for claim in rates(()):
        lines.append(_line(claim, [_share(*each[claim]) for each in found]))
    for name in sorted({name for rows in columns.values() for row in rows for name in _rivals(row)}, key=str.lower):
        rival = [_share(*_noticed(rows, name)) for rows in columns.values()]
        lines.append(_line(f"recall of {name}, generously counted", rival))
    lines.append(_line("diagnosing, forwards of a batch (median)", [_cost(rows) for rows in columns.values()]))
    return "\n".join(lines)


def _line(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3f} ({part} of {whole})" if whole else "not measured"


def _rivals(row: Mapping[str, Any]) -> Mapping[str, bool]:
    """Return each rival's result; the first records have ``rival``, which is torch-audit's."""
    if "rivals" in row:
        return row["rivals"]  # type: ignore[no-any-return]
    return {} if row["rival"] is None else {"torch-audit": row["rival"]}


def _noticed(rows: Rows, name: str) -> tuple[int, int]:
    said = [_rivals(row)[name] for row in rows if name in _rivals(row)]
    return sum(said), len(said)


def _cost(rows: Rows) -> str:
    forwards = [row["forwards"] for row in rows if row["forwards"] is not None]
    return f"{statistics.median(forwards):.0f}" if forwards else "not measured"


def failures(rows: Rows) -> Iterator[str]:
    """List misses, false alarms, wrong places and failed repairs, a line each."""
    for row in rows:
        where = f"{row['half']}, {row['architecture']} seed {row['seed']}, {row['fault'] or row['variant']}"
        found = ", ".join(row["found"]) or "nothing"
        if row["fault"] and not row["caught"]:
            yield f"missed: {where}: found {found} (accuracy {row['healthy']:.3f} -> {_number(row['faulty'])})"
        if row["false"]:
            yield f"false alarm: {where}: {', '.join(row['false'])}"
        if row["localisable"] and row["caught"] and not row["placed"]:
            yield f"wrong layer: {where}"
        if row["treated"] is not None and share_won_back(row) < REPAIRED:
            yield (
                f"not repaired: {where}: accuracy {row['healthy']:.3f} -> {_number(row['faulty'])} -> "
                f"{row['treated']:.3f}"
            )


def _number(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:.3f}"

"""Progress of a record's networks, and their entries in a summary."""

from __future__ import annotations

from typing import Any

from steadynorm.reporting.records import Cell, Record

__all__ = ["all_measured", "has_ended", "networks_as_json"]


def has_ended(record: Record) -> bool:
    """Whether there are networks and all of them have ended."""
    return bool(record.networks) and all(run.has_ended for run in record.networks)


def all_measured(record: Record) -> bool:
    """Whether every network has ended, and every cell that was planned after them is measured.

    After networks that all diverged there is none.
    """
    lost = bool(record.networks) and all(network.status == "diverged" for network in record.networks)
    return all(cell.has_ended for cell in record.cells) and (lost or len(record.cells) > len(record.networks))


def networks_as_json(record: Record) -> list[dict[str, Any]]:
    """Return every network with its epochs; the norms of single weights stay in the record."""
    return [_as_json(run) for run in record.networks]


def _as_json(run: Cell) -> dict[str, Any]:
    epochs: dict[int, dict[str, float]] = {}
    for row in run.measurements:
        if not row.subject and row.quantity not in ("parameters", "diverged"):
            epochs.setdefault(row.step, {"epoch": row.step})[row.quantity] = row.value
    return {
        "spec": run.factors,
        "status": run.status,
        "diverged_at_step": run.diverged_at_step,
        "parameters": int(run.series("parameters").get(0, 0)),
        "epochs": list(epochs.values()),
    }

"""Records of the first format: trained networks in tables of their own, ``runs.json`` and two of numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steadynorm.reporting.records import (
    Cell,
    Factors,
    Measurement,
    Status,
    StoredFields,
    decoded,
    read_measurements,
    read_rows,
)

__all__ = ["network_factors", "read_cells"]

EPOCH = [
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "grad_norm_mean",
    "grad_norm_p5",
    "grad_norm_p95",
    "images_per_second",
    "seconds",
]
"""Columns of ``metrics.csv`` after the run and its epoch: quantities of the cell itself."""
NORMS = ["mean", "p5", "p95"]
"""Columns of ``gradient_norms.csv`` after the run, its epoch and a weight, which is the subject."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """An entry of ``runs.json``; the first records lack what has a default."""

    name: str
    arm: str
    seed: int
    lr: float
    epochs: int
    purpose: str = "compare"
    batch_size: int | None = None
    depth: int | None = None
    variant: str = ""
    status: Status
    diverged_at_step: int | None
    parameters: int


@dataclass(frozen=True, kw_only=True)
class _Cell:
    name: str
    factors: dict[str, str | int | float]
    seconds: float | None


def network_factors(spec: dict[str, Any]) -> Factors:
    """Return the factors of a network, in the order of its name; what is usual is absent."""
    order = ("purpose", "variant", "arm", "lr", "batch_size", "depth", "seed", "epochs")
    return StoredFields({name: spec[name] for name in order if spec.get(name) not in (None, "", "compare")})


def read_cells(directory: Path) -> tuple[Cell, ...]:
    """Read the networks, and the cells where there are any.

    Raises:
        ValueError: a file is damaged.
    """
    rows: dict[str, list[Measurement]] = {}
    for run, epoch, *values in read_rows(directory / "metrics.csv", ["run", "epoch", *EPOCH]):
        rows.setdefault(run, []).extend(
            Measurement(step=int(epoch), quantity=name, value=float(value))
            for name, value in zip(EPOCH, values, strict=True)
        )
    for run, epoch, layer, *values in read_rows(directory / "gradient_norms.csv", ["run", "epoch", "layer", *NORMS]):
        rows.setdefault(run, []).extend(
            Measurement(subject=layer, step=int(epoch), quantity=f"grad_norm_{name}", value=float(value))
            for name, value in zip(NORMS, values, strict=True)
        )
    networks = [_network(run, rows.pop(run.name, [])) for run in decoded(directory / "runs.json", list[_Run])]
    if rows:
        raise ValueError(f"metrics.csv: runs.json has no {', '.join(rows)}")
    return (*networks, *_cells(directory))


def _network(run: _Run, rows: list[Measurement]) -> Cell:
    own = [Measurement(quantity="parameters", value=run.parameters)] if run.parameters else []
    if run.diverged_at_step is not None:
        own.append(Measurement(step=run.diverged_at_step, quantity="diverged", value=1.0))
    return Cell(factors=network_factors(asdict(run)), status=run.status, measurements=(*own, *rows))


def _cells(directory: Path) -> tuple[Cell, ...]:
    if not (directory / "cells.json").exists():
        return ()
    rows = read_measurements(directory)
    cells = []
    for head in decoded(directory / "cells.json", list[_Cell]):
        measured = tuple(rows.pop(head.name, ()))
        diverged = any(row.quantity == "diverged" for row in measured)
        status: Status = "waiting" if head.seconds is None else "diverged" if diverged else "finished"
        cells.append(
            Cell(factors=StoredFields(head.factors), status=status, seconds=head.seconds, measurements=measured)
        )
    if rows:
        raise ValueError(f"measurements.csv: cells.json has no {', '.join(rows)}")
    return tuple(cells)

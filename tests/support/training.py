"""One tiny network, trained alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from steadynorm.lab.cells import CellFiles, measure
from steadynorm.lab.training import Training, network
from steadynorm.reporting.records import Cell
from steadynorm.reporting.run_directory import RunDirectory
from tests.support.experiments import TINY_SETTINGS, Recorder, tiny_dataset

__all__ = ["DATA", "NETWORK", "run"]

DATA = tiny_dataset()
NETWORK = Cell(factors=network(arm="batch_norm", seed=0, lr=0.05, epochs=4))


def run(
    path: Path, cell: Cell = NETWORK, display: Recorder | None = None, *, lines: bool = False, **changes: object
) -> Cell:
    """Train one network, or the rest of it."""
    training = Training(settings=replace(TINY_SETTINGS, **changes), dataset=DATA)
    files = CellFiles(RunDirectory(path), display or Recorder(), {}, lines=lines)
    (known,) = files.plan([cell.factors])
    with files:
        if not known.has_ended:
            files.end(measure(known, training, files.begin(known), files))
    return files.known[cell.name]

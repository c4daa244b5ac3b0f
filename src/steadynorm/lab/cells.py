"""Measure a list of cells into one run directory, skipping what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from steadynorm.lab.progress import Display
from steadynorm.lab.records import CellRecord, Factor, Measurement, write_cells
from steadynorm.lab.run_directory import RunDirectory

__all__ = ["Measure", "measure_cells"]

Measure = Callable[[dict[str, Factor], Callable[[float], None]], Iterable[Measurement]]
"""Measures the cell of these factors, and says now and then what share in [0, 1] of it is done."""


def measure_cells(
    grid: Sequence[dict[str, Factor]], measure: Measure, *, directory: RunDirectory, display: Display
) -> tuple[CellRecord, ...]:
    """Measure each cell of ``grid`` in turn and keep each as soon as it is whole.

    Args:
        grid: the factors of each cell; their order is that of the tables.
        measure: is called for cells that the directory does not know yet.

    Returns:
        all cells, measured, in the order of ``grid``.

    Raises:
        UserError: a file of the directory is damaged.
    """
    cells = [directory.load_cell(CellRecord(factors=factors)) for factors in grid]
    write_cells(directory.path, tuple(cells))  # so that a report knows from the start what is planned
    for number, cell in enumerate(cells):
        if cell.is_measured:
            continue
        display.begin_cell(cell.name, number=number + 1, of=len(cells))
        start = time.perf_counter()
        rows = tuple(measure(cell.factors, display.advance))
        cells[number] = replace(cell, measurements=rows, seconds=time.perf_counter() - start)
        directory.save_cell(cells[number])
        write_cells(directory.path, tuple(cells))
        display.end_cell(cell.name)
    return tuple(cells)

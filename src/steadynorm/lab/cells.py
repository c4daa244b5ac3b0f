"""Measure a list of cells into one run directory, skipping what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from steadynorm.lab.progress import Display
from steadynorm.lab.records import CellRecord, Factor, Measurement
from steadynorm.lab.run_directory import RunDirectory
from steadynorm.lab.workers import everywhere, gathered, number_of_workers, worker

__all__ = ["Measure", "measure_cells"]

Measure = Callable[[dict[str, Factor], Callable[[float], None]], Iterable[Measurement]]
"""Measures the cell of these factors, and says now and then what share in [0, 1] of it is done."""


def measure_cells(
    grid: Sequence[dict[str, Factor]], measure: Measure, *, directory: RunDirectory, display: Display
) -> tuple[CellRecord, ...]:
    """Measure each cell of ``grid`` in turn and keep each as soon as it is whole.

    Under torchrun as many cells are measured at once as there are workers, each by one of them.

    Args:
        grid: the factors of each cell; their order is that of the tables.
        measure: is called for cells that the directory does not know yet.

    Returns:
        all cells, measured, in the order of ``grid``.

    Raises:
        UserError: a file of the directory is damaged.
    """
    cells = [directory.load_cell(CellRecord(factors=factors)) for factors in grid]
    directory.write_cells(cells)  # so that a report knows from the start what is planned

    def measured(number: int | None) -> CellRecord | None:
        if number is None:
            return None
        display.begin_cell(cells[number].name, number=number + 1, of=len(cells))
        start = time.perf_counter()
        rows = tuple(measure(cells[number].factors, display.advance))
        return replace(cells[number], measurements=rows, seconds=time.perf_counter() - start)

    for numbers in _rounds([number for number, cell in enumerate(cells) if not cell.is_measured]):
        own = numbers[worker()] if worker() < len(numbers) else None
        found = gathered(everywhere(partial(measured, own)))
        for number, cell in zip(numbers, found, strict=False):
            assert cell is not None
            cells[number] = cell
            directory.save_cell(cell)
        directory.write_cells(cells)
        for number in numbers:
            display.end_cell(cells[number].name)
    return tuple(cells)


def _rounds(numbers: list[int]) -> Iterator[list[int]]:
    """Give as many at a time as there are workers."""
    size = number_of_workers()
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]

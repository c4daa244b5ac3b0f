"""Measure a list of cells into one run directory, skipping what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from steadynorm.lab.workers import everywhere, gathered, number_of_workers, worker
from steadynorm.reporting.records import CellRecord, Factor, Measurement

if TYPE_CHECKING:
    from steadynorm.lab.experiment import Task

__all__ = ["Measure", "measure_cells"]

Measure = Callable[[dict[str, Factor], Callable[[float], None]], Iterable[Measurement]]
"""Measures the cell of these factors, and says now and then what share in [0, 1] of it is done."""

TaskT = TypeVar("TaskT", bound="Task[Any]")


def measure_cells(
    grid: Sequence[dict[str, Factor]], make: Callable[[TaskT], Measure], task: TaskT
) -> tuple[CellRecord, ...]:
    """Measure each cell of ``grid`` and keep each as soon as it is whole.

    They are measured one after the other; under torchrun as many at once as there are workers, each by one of them;
    with Ray as its tasks.

    Args:
        grid: the factors of each cell; their order is that of the tables.
        make: a function of a module that makes, from ``task``, what measures a cell the directory does not know yet.
        task: the experiment's.

    Returns:
        all cells, measured, in the order of ``grid``.

    Raises:
        UserError: a file of the directory is damaged.
    """
    directory, display = task.directory, task.display
    cells = [directory.load_cell(CellRecord(factors=factors)) for factors in grid]
    directory.write_cells(cells)  # so that a report knows from the start what is planned
    waiting = [number for number, cell in enumerate(cells) if not cell.is_measured]

    def begin(number: int) -> None:
        display.begin_cell(cells[number].name, number=number + 1, of=len(cells))

    def keep(number: int, cell: CellRecord) -> None:
        cells[number] = cell
        directory.save_cell(cell)
        directory.write_cells(cells)
        display.end_cell(cell.name)

    if task.pool is not None:
        for number, rows, seconds in task.pool.measure(
            {each: cells[each] for each in waiting}, make, task, begin=begin
        ):
            keep(number, replace(cells[number], measurements=rows, seconds=seconds))
        return tuple(cells)
    measure = make(task)

    def measured(number: int | None) -> CellRecord | None:
        if number is None:
            return None
        begin(number)
        start = time.perf_counter()
        rows = tuple(measure(cells[number].factors, display.advance))
        return replace(cells[number], measurements=rows, seconds=time.perf_counter() - start)

    for numbers in _rounds(waiting):
        own = numbers[worker()] if worker() < len(numbers) else None
        found = gathered(everywhere(partial(measured, own)))
        for number, cell in zip(numbers, found, strict=False):
            assert cell is not None
            keep(number, cell)
    return tuple(cells)


def _rounds(numbers: list[int]) -> Iterator[list[int]]:
    """Give as many at a time as there are workers."""
    size = number_of_workers()
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]

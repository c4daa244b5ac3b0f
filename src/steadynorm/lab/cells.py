"""Measure the cells of a grid into one run directory: skip finished cells, resume from states, save each cell.

A generator measures a cell. It yields each number as a :class:`Measurement`; a :class:`State` from which it could
resume; a :class:`Line` to show; and a :class:`Model` if a trained network is to be saved. The process that runs it
(this one, one of torchrun's workers or a Ray task) collects and writes the numbers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor

from steadynorm.lab.loggers import Log, Logger
from steadynorm.lab.workers import gathered, number_of_workers, on_first, run_on_all_ranks, worker
from steadynorm.reporting.lines import send_line
from steadynorm.reporting.progress import Display
from steadynorm.reporting.records import Cell, Factors, Measurement
from steadynorm.reporting.run_directory import RunDirectory

if TYPE_CHECKING:
    from steadynorm.lab.experiment import Task

__all__ = ["CellFiles", "Job", "Keeper", "Line", "Measure", "Model", "State", "measure", "measure_cells"]


@dataclass(frozen=True, kw_only=True)
class State:
    """A point to resume from: all that was yielded before it, and these tensors."""

    tensors: Mapping[str, Tensor]
    share: float
    """Share of the cell that is done, in [0, 1]."""
    text: str
    """Text to show."""
    readings: Mapping[str, float] = field(default_factory=dict)
    """Readings of its norms, as :func:`steadynorm.surgery.readings_during` returns them; logged, not measured."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Progress of a cell, shown as a line that stays."""

    share: float
    """Share of the cell that is done, in [0, 1]."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Model:
    """A trained network to save."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell to measure, or the rest of it."""

    cell: Cell
    """The cell with the measurements of its last state."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors of its last state; empty at its start."""
    advance: Callable[[float, str], None] = lambda share, text: None
    """Receives the share that is done, in [0, 1], and a short text."""

    @property
    def factors(self) -> Factors:
        """Factors that identify the cell."""
        return self.cell.factors


Measure = Callable[[Job], Iterable[Measurement | State | Line | Model]]
TaskT = TypeVar("TaskT", bound="Task[Any]")


class Keeper(Protocol):
    """Receives the progress of a cell while it is measured."""

    def advance(self, cell: Cell, share: float, text: str) -> None:
        """Show its progress."""

    def show(self, cell: Cell, line: Line) -> None:
        """Show a line about it."""

    def keep_state(self, cell: Cell, state: State) -> None:
        """Save a state of it."""

    def keep_model(self, cell: Cell, model: Model) -> None:
        """Save its trained network."""


def measure(cell: Cell, how: Measure, tensors: Mapping[str, Tensor], keeper: Keeper) -> Cell:
    """Measure a cell, or the rest of it after its state, to its end.

    Args:
        cell: with the measurements of its state.
        how: measures it.
        tensors: those of its state.
        keeper: receives states and models on the way.

    Returns:
        the finished or diverged cell.
    """
    rows, start, before = list(cell.measurements), time.perf_counter(), cell.seconds or 0.0

    def now(status: str) -> Cell:
        seconds = before + time.perf_counter() - start
        return replace(cell, status=status, seconds=seconds, measurements=tuple(rows))  # type: ignore[arg-type]

    for item in how(Job(cell=cell, tensors=tensors, advance=partial(keeper.advance, cell))):
        if isinstance(item, Measurement):
            rows.append(item)
        elif isinstance(item, State):
            keeper.keep_state(now("running"), item)
        elif isinstance(item, Line):
            keeper.show(cell, item)
        else:
            keeper.keep_model(cell, item)
    return now("diverged" if any(row.quantity == "diverged" for row in rows) else "finished")


def measure_cells(
    grid: Sequence[Factors], make: Callable[[TaskT], Measure], task: TaskT, *, together: bool = False
) -> list[Cell]:
    """Measure each cell of ``grid`` and save each one as it ends.

    The cells run one after the other. Under torchrun all workers measure each cell together, or each worker measures
    another cell; with Ray each cell is a task.

    Args:
        grid: the factors of each cell; their order is that of the tables.
        make: makes the measuring function from ``task``.
        task: that of the experiment.
        together: whether torchrun's workers share each cell; only such cells may have states.

    Returns:
        all cells of ``grid``, finished, in its order.

    Raises:
        UserError: a file of the directory is damaged.
    """
    log = getattr(task.config, "log", ())  # for experiments that train networks
    files = CellFiles(task.directory, task.display, task.cells, log=log, lines=task.config.json)
    cells = files.plan(grid)
    waiting = [cell for cell in cells if not cell.has_ended]
    with files:
        if task.pool is not None:
            task.pool.measure(waiting, make, task, files, timed=together)
        elif together or number_of_workers() == 1:
            how = make(task)
            for cell in waiting:
                tensors = files.begin(cell)
                files.end(measure(cell, how, tensors, files))
        else:
            _share_out(waiting, make(task), files)
    return [task.cells[cell.name] for cell in cells]


def _share_out(waiting: Sequence[Cell], how: Measure, files: CellFiles) -> None:
    """Let each of torchrun's workers measure another cell."""

    def one_of(cells: Sequence[Cell]) -> Cell | None:
        if worker() >= len(cells):
            return None
        cell = cells[worker()]
        files.show_begin(cell)
        return measure(cell, how, {}, files)

    for start in range(0, len(waiting), number_of_workers()):
        cells = waiting[start : start + number_of_workers()]
        for found in gathered(run_on_all_ranks(partial(one_of, cells)))[: len(cells)]:
            assert found is not None
            files.end(found)


class CellFiles:
    """Saves cells in the run directory and reports their progress; of torchrun's workers only the first writes.

    Args:
        directory: where cells are saved.
        display: shows their progress.
        known: cells by name, as last saved.
        log: names of the loggers for the epochs of networks.
        lines: whether to write a JSON line to standard output for each epoch of a network and each finished cell.
    """

    def __init__(
        self,
        directory: RunDirectory,
        display: Display,
        known: dict[str, Cell],
        *,
        log: Sequence[Logger] = ("tensorboard",),
        lines: bool = False,
    ) -> None:
        self.directory, self.display, self.known, self.log, self.lines = directory, display, known, log, lines
        self.names: list[str] = []
        self.logs: dict[str, Log] = {}
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> None:
        self.stack.__enter__()

    def __exit__(self, *exception: Any) -> None:  # noqa: ANN401 (as contextlib has it)
        self.stack.__exit__(*exception)

    def plan(self, grid: Sequence[Factors]) -> list[Cell]:
        """Read the progress of each cell and write the tables, so a report knows the plan from the start."""
        cells = on_first(lambda: [self._load(Cell(factors=factors)) for factors in grid])
        self.names = [cell.name for cell in cells]
        self.known |= {cell.name: cell for cell in cells}
        self._write()
        return cells

    def _load(self, cell: Cell) -> Cell:
        found = self.directory.load_state(cell)
        return found if found.has_ended else replace(found, status="waiting" if not found.measurements else "running")

    def last_state(self, cell: Cell) -> Cell:
        """Return a cell as last saved."""
        return self.known[cell.name]

    def begin(self, cell: Cell) -> Mapping[str, Tensor]:
        """Note that a cell starts or resumes; return the tensors from which it resumes."""
        on_first(lambda: self._open_log(cell))
        self.show_begin(cell)
        return on_first(lambda: self.directory.load_tensors(cell)) if cell.measurements else {}

    def _open_log(self, cell: Cell) -> None:
        if cell.is_network and cell.name not in self.logs:  # a Ray task may start again
            self.logs[cell.name] = Log(self.log, self.directory, cell)
            self.stack.callback(self.logs[cell.name].close)

    def show_begin(self, cell: Cell) -> None:
        """Show that a cell starts."""
        left = sum(not self.known[name].has_ended for name in self.names)
        share, text = _planned(cell)
        number = self.names.index(cell.name) + 1
        self.display.begin(cell.name, number=number, of=len(self.names), left=left, share=share, text=text)

    def advance(self, cell: Cell, share: float, text: str) -> None:
        """Show the progress of a cell."""
        self.display.advance(cell.name, share, text)

    def show(self, cell: Cell, line: Line) -> None:
        """Show a line that stays."""
        self.display.advance(cell.name, line.share, line.text, lasting=True)

    def keep_state(self, cell: Cell, state: State) -> None:
        """Save a state, and show the measurements."""
        on_first(lambda: self.directory.save_state(cell, state.tensors))
        self._keep(cell)
        if cell.name in self.logs:
            self.logs[cell.name].write(cell, state.readings)
        if cell.is_network:
            self._tell("epoch", cell, _last_epoch(cell) | {"readings": state.readings})
        self.display.advance(cell.name, state.share, state.text, lasting=True)

    def keep_model(self, cell: Cell, model: Model) -> None:
        """Save a trained network."""
        on_first(lambda: self.directory.save_checkpoint(cell, model.tensors, model.metadata))

    def end(self, cell: Cell) -> None:
        """Save a finished cell."""
        on_first(lambda: self.directory.save_state(cell, {}))
        self._keep(cell)
        if cell.name in self.logs:
            self.logs.pop(cell.name).close()
        self._tell("cell", cell, _end_of(cell))
        lost = f"{cell.name} diverged: its loss was not finite at step {cell.diverged_at_step}"
        self.display.end(cell.name, lost if cell.status == "diverged" else "")

    def _tell(self, kind: str, cell: Cell, news: Mapping[str, Any]) -> None:
        if self.lines:
            on_first(lambda: send_line(kind, {"cell": cell.name, "factors": cell.factors, **news}))

    def _keep(self, cell: Cell) -> None:
        self.known[cell.name] = cell
        self._write()

    def _write(self) -> None:
        on_first(lambda: self.directory.write_cells(self.known.values()))


def _planned(cell: Cell) -> tuple[float, str]:
    """Describe the share of a cell that is done and, for a network, its epochs and the epoch it resumes after."""
    if not cell.is_network:
        return 0.0, ""
    done, planned = len(cell.series("val_accuracy")), cell.factors["epochs"]
    return done / planned, f": {planned} epoch{'s' if planned > 1 else ''}" + (
        f", goes on after epoch {done}" if done else ""
    )


def _last_epoch(cell: Cell) -> dict[str, Any]:
    """Return the last epoch of a network, without the measurements of single layers."""
    epoch = max(cell.series("val_accuracy"))
    return {"epoch": epoch} | {
        row.quantity: row.value for row in cell.measurements if row.step == epoch and not row.subject
    }


def _end_of(cell: Cell) -> dict[str, Any]:
    """Describe how a cell ended, and its measurements if its epochs did not show them."""
    news: dict[str, Any] = {"status": cell.status, "seconds": cell.seconds, "diverged_at_step": cell.diverged_at_step}
    return news if cell.is_network else news | {"measurements": cell.measurements}

"""What a person sees while networks train: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn

from steadynorm.lab.workers import is_first
from steadynorm.reporting.printable import printable
from steadynorm.reporting.records import RunRecord, RunSpec

__all__ = ["Display", "open_display", "silent_display"]


class Display(Protocol):
    """Where training reports to; see :class:`steadynorm.lab.training.Observer` for ``step`` and ``epoch``."""

    def message(self, text: str) -> None:
        """Say one line that stays."""
        ...

    def begin(self, spec: RunSpec, *, number: int, of: int, epochs_done: int, epochs_left: int) -> None:
        """Note that network ``number`` of ``of`` starts. ``epochs_left`` counts those of all networks together."""
        ...

    def step(self, record: RunRecord, *, step: int, steps: int, loss: float | None) -> None:
        """See the observer of training."""
        ...

    def epoch(self, record: RunRecord) -> None:
        """See the observer of training."""
        ...

    def end(self, record: RunRecord) -> None:
        """Note that the network is finished or has diverged."""
        ...

    def begin_cell(self, name: str, *, number: int, of: int) -> None:
        """Note that the measurement of cell ``number`` of ``of`` starts."""
        ...

    def advance(self, share: float) -> None:
        """Note what share, in [0, 1], of the cell is measured."""
        ...

    def end_cell(self, name: str) -> None:
        """Note that the cell is measured."""
        ...


@contextlib.contextmanager
def open_display() -> Iterator[Display]:
    """Open the display that suits standard error: live in a terminal, else plain lines; of the first worker alone."""
    console = Console(stderr=True, highlight=False)
    if not is_first():
        yield silent_display()
    elif console.is_terminal:
        with _Live(console) as live:
            yield live
    else:
        yield _Plain(console)


def silent_display() -> Display:
    """Give a display that shows nothing, for a process whose news another one tells."""
    return _Silent()


class _Silent:
    """Nothing."""

    def message(self, text: str) -> None:
        pass

    def begin(self, spec: RunSpec, *, number: int, of: int, epochs_done: int, epochs_left: int) -> None:
        pass

    def step(self, record: RunRecord, *, step: int, steps: int, loss: float | None) -> None:
        pass

    def epoch(self, record: RunRecord) -> None:
        pass

    def end(self, record: RunRecord) -> None:
        pass

    def begin_cell(self, name: str, *, number: int, of: int) -> None:
        pass

    def advance(self, share: float) -> None:
        pass

    def end_cell(self, name: str) -> None:
        pass


class _Plain:
    """One line per epoch, under the name of its network."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.told = ""
        """Name of the network that the last line is about."""

    def message(self, text: str) -> None:
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def begin(self, spec: RunSpec, *, number: int, of: int, epochs_done: int, epochs_left: int) -> None:
        self.told = spec.name
        behind = f", goes on behind epoch {epochs_done}" if epochs_done else ""
        self.message(f"[{number}/{of}] {spec.name}: {spec.epochs} epochs{behind}")

    def step(self, record: RunRecord, *, step: int, steps: int, loss: float | None) -> None:
        pass

    def epoch(self, record: RunRecord) -> None:
        if record.spec.name != self.told:
            self.told = record.spec.name
            self.message(self.told)
        self.message(f"  {_describe(record)}")

    def end(self, record: RunRecord) -> None:
        if record.status == "diverged":
            self.message(f"  {record.spec.name} diverged: its loss was not finite at step {record.diverged_at_step}")

    def begin_cell(self, name: str, *, number: int, of: int) -> None:
        self.message(f"[{number}/{of}] {name}")

    def advance(self, share: float) -> None:
        pass

    def end_cell(self, name: str) -> None:
        pass


class _Live(_Plain):
    """A bar for each running network or cell and one for all of them, with the latest numbers."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            transient=True,
        )
        self.whole = self.bars.add_task("all networks", total=1.0, numbers="", visible=False)
        self.cells: TaskID | None = None
        self.running: dict[str, TaskID] = {}
        self.behind: dict[str, int] = {}
        """Epochs that a network had when it began, which are no part of what is done now."""
        self.done = 0.0
        """Epochs, and then cells, of what has ended."""

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def begin(self, spec: RunSpec, *, number: int, of: int, epochs_done: int, epochs_left: int) -> None:
        self._open(spec.name, f"[{number}/{of}] {spec.name}", total=spec.epochs, completed=epochs_done)
        self.behind[spec.name] = epochs_done
        known = self.done + sum(
            int(self._bar(name).completed) - self.behind[name] for name in self.running if name != spec.name
        )
        self.bars.update(self.whole, total=known + epochs_left, visible=of > 1)

    def step(self, record: RunRecord, *, step: int, steps: int, loss: float | None) -> None:
        name = record.spec.name
        if name not in self.running:
            return  # news of one of Ray's tasks may come in behind its end
        self.bars.update(self.running[name], completed=len(record.epochs) + step / steps)
        self.bars.update(self.whole, completed=self.done + sum(map(self._new_epochs, self.running)))
        if loss is not None:
            number = len(record.epochs) + 1
            self.bars.update(self.running[name], numbers=f"epoch {number}/{record.spec.epochs}, loss {loss:.3f}")

    def epoch(self, record: RunRecord) -> None:
        last = record.epochs[-1]
        self.bars.update(
            self.whole, numbers=f"validation {last.val_accuracy:.1%}, {last.images_per_second:,.0f} images/s"
        )

    def end(self, record: RunRecord) -> None:
        super().end(record)
        name = record.spec.name
        if record.epochs and record.status == "finished":
            self.message(f"{self._bar(name).description}: {_measured(record)}")
        self.done += self._new_epochs(name)
        self._close(name)

    def begin_cell(self, name: str, *, number: int, of: int) -> None:
        if self.cells is None:
            self.done = number - 1
            self.cells = self.bars.add_task("all cells", total=of, completed=number - 1, numbers="", visible=of > 1)
            self.bars.update(self.whole, visible=False)
        self._open(name, f"[{number}/{of}] {name}", total=1.0, completed=0)

    def advance(self, share: float) -> None:
        assert self.cells is not None
        (bar,) = self.running.values()  # only where cells are measured one after the other does one say so
        self.bars.update(bar, completed=share)
        self.bars.update(self.cells, completed=self.done + share)

    def end_cell(self, name: str) -> None:
        assert self.cells is not None
        self.done += 1
        self.bars.update(self.cells, completed=self.done)
        self._close(name)

    def _open(self, name: str, description: str, *, total: float, completed: int) -> None:
        self.running[name] = self.bars.add_task(description, total=total, completed=completed, numbers="")

    def _close(self, name: str) -> None:
        if name in self.running:  # of torchrun's workers the first hears the ends of others' cells as well
            self.bars.remove_task(self.running.pop(name))

    def _bar(self, name: str) -> Task:
        return next(task for task in self.bars.tasks if task.id == self.running[name])

    def _new_epochs(self, name: str) -> float:
        return self._bar(name).completed - self.behind[name]


def _describe(record: RunRecord) -> str:
    last = record.epochs[-1]
    speed = f"{last.images_per_second:,.0f} images/s  {last.seconds:.1f} s"
    return f"epoch {last.epoch}/{record.spec.epochs}  {_measured(record)}  {speed}"


def _measured(record: RunRecord) -> str:
    last = record.epochs[-1]
    train = f"train {last.train_loss:.3f} {last.train_accuracy:.1%}"
    return f"{train}  validation {last.val_loss:.3f} {last.val_accuracy:.1%}  gradient {last.grad_norm_mean:.2f}"

"""What a person sees while networks train: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from steadynorm.lab.records import RunRecord, RunSpec
from steadynorm.lab.workers import is_first

__all__ = ["Display", "open_display"]


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
        yield _Silent()
    elif console.is_terminal:
        with _Live(console) as live:
            yield live
    else:
        yield _Plain(console)


class _Silent:
    """Nothing: what it would say, another worker says."""

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
    """One line per epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def begin(self, spec: RunSpec, *, number: int, of: int, epochs_done: int, epochs_left: int) -> None:
        behind = f", goes on behind epoch {epochs_done}" if epochs_done else ""
        self.message(f"[{number}/{of}] {spec.name}: {spec.epochs} epochs{behind}")

    def step(self, record: RunRecord, *, step: int, steps: int, loss: float | None) -> None:
        pass

    def epoch(self, record: RunRecord) -> None:
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
    """A bar for the current network and one for the whole experiment, with the latest numbers."""

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
        self.network = self.bars.add_task("", total=1.0, numbers="", visible=False)
        self.whole = self.bars.add_task("all networks", total=1.0, numbers="", visible=False)
        self.cells: TaskID | None = None
        self.position = ""

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def begin(self, spec: RunSpec, *, number: int, of: int, epochs_done: int, epochs_left: int) -> None:
        self.position = f"[{number}/{of}] {spec.name}"
        self.bars.reset(
            self.network,
            total=spec.epochs,
            completed=epochs_done,
            description=self.position,
            visible=True,
            numbers="",
        )
        if number == 1:
            self.bars.reset(self.whole, total=epochs_left, visible=of > 1)
        else:
            task = self.bars.tasks[self.whole]
            self.bars.update(self.whole, total=task.completed + epochs_left)
        self.done = self.bars.tasks[self.whole].completed - epochs_done

    def step(self, record: RunRecord, *, step: int, steps: int, loss: float | None) -> None:
        epochs = len(record.epochs) + step / steps
        self.bars.update(self.network, completed=epochs)
        self.bars.update(self.whole, completed=self.done + epochs)
        if loss is not None:
            number = len(record.epochs) + 1
            self.bars.update(self.network, numbers=f"epoch {number}/{record.spec.epochs}, loss {loss:.3f}")

    def end(self, record: RunRecord) -> None:
        super().end(record)
        if record.epochs and record.status == "finished":
            self.message(f"{self.position}: {_measured(record)}")

    def begin_cell(self, name: str, *, number: int, of: int) -> None:
        self.bars.reset(self.network, total=1.0, description=f"[{number}/{of}] {name}", visible=True, numbers="")
        if self.cells is None:
            self.cells = self.bars.add_task("all cells", total=of, completed=number - 1, numbers="", visible=of > 1)
            self.bars.update(self.whole, visible=False)
        self.before = number - 1

    def advance(self, share: float) -> None:
        assert self.cells is not None
        self.bars.update(self.network, completed=share)
        self.bars.update(self.cells, completed=self.before + share)

    def end_cell(self, name: str) -> None:
        self.advance(1.0)

    def epoch(self, record: RunRecord) -> None:
        last = record.epochs[-1]
        self.bars.update(
            self.whole, numbers=f"validation {last.val_accuracy:.1%}, {last.images_per_second:,.0f} images/s"
        )


def _describe(record: RunRecord) -> str:
    last = record.epochs[-1]
    speed = f"{last.images_per_second:,.0f} images/s  {last.seconds:.1f} s"
    return f"epoch {last.epoch}/{record.spec.epochs}  {_measured(record)}  {speed}"


def _measured(record: RunRecord) -> str:
    last = record.epochs[-1]
    train = f"train {last.train_loss:.3f} {last.train_accuracy:.1%}"
    return f"{train}  validation {last.val_loss:.3f} {last.val_accuracy:.1%}  gradient {last.grad_norm_mean:.2f}"

"""Show progress: live bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from types import TracebackType
from typing import Protocol, Self, TextIO

from steadynorm.printable import printable

__all__ = ["Display", "open_display", "silent_display"]


PLAIN = ("dumb", "unknown")
"""Terminals that cannot move the cursor back, so bars are not drawn."""


class Display(Protocol):
    """Interface for reporting progress."""

    def message(self, text: str) -> None:
        """Say one line that stays."""

    def begin(
        self, name: str, *, number: int, of: int, left: int | None = None, share: float = 0.0, text: str = ""
    ) -> None:
        """Note that piece ``number`` of ``of`` begins or goes on.

        Args:
            name: of the piece: a cell, a file to make.
            number: counted from 1.
            of: all pieces.
            left: pieces that have not ended; default: this one and those after it.
            share: of the piece that is done, in [0, 1].
            text: follows its name.
        """

    def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
        """Note what share in [0, 1] of a piece is done; of a text that is ``lasting`` a line stays."""

    def end(self, name: str, text: str = "") -> None:
        """Note that a piece has ended; a text says how, where it did not end well."""


@contextlib.contextmanager
def open_display(*, shown: bool = True, stream: TextIO | None = None, timed: bool = False) -> Iterator[Display]:
    """Open the display that suits a stream: live bars in a terminal where rich is installed, else plain lines.

    NO_COLOR leaves colours out of the bars; TERM=dumb is no terminal for them.

    Args:
        shown: False for a process whose news another one tells.
        stream: default: standard error.
        timed: whether speeds are measured meanwhile. Then bars are drawn when a piece begins and not by a clock, which
            would take time from what is measured, and plain lines do not say what begins.
    """
    stream = stream or sys.stderr
    if not shown:
        yield silent_display()
    elif stream.isatty() and os.environ.get("TERM") not in PLAIN and find_spec("rich") is not None:
        with _Live(stream, timed=timed) as live:
            yield live
    else:
        yield _Plain(stream, timed=timed)


def silent_display() -> Display:
    """Return a display that shows nothing."""
    return _Silent()


class _Silent:
    """Nothing."""

    def message(self, text: str) -> None:
        pass

    def begin(
        self, name: str, *, number: int, of: int, left: int | None = None, share: float = 0.0, text: str = ""
    ) -> None:
        pass

    def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
        pass

    def end(self, name: str, text: str = "") -> None:
        pass


class _Plain:
    """One line for each text that lasts, under the name of its piece."""

    def __init__(self, stream: TextIO, *, timed: bool = False) -> None:
        self.stream = stream
        self.timed = timed
        self.told = ""
        """Name of the piece that the last line is about."""

    def message(self, text: str) -> None:
        print(printable(text), file=self.stream, flush=True)

    def begin(
        self, name: str, *, number: int, of: int, left: int | None = None, share: float = 0.0, text: str = ""
    ) -> None:
        self.told = name
        if not self.timed:
            self.message(f"[{number}/{of}] {name}{text}")

    def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
        if not lasting:
            return
        if name != self.told:
            self.told = name
            self.message(self.told)
        self.message(f"  {text}")

    def end(self, name: str, text: str = "") -> None:
        if text:
            self.message(f"  {text}")


class _Live(_Plain):
    """A bar for each running piece and one for all of them, with the latest texts."""

    def __init__(self, stream: TextIO, *, timed: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

        super().__init__(stream, timed=timed)
        self.console = Console(file=stream, highlight=False)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            TextColumn("{task.fields[text]}"),
            console=self.console,
            transient=True,
            auto_refresh=not timed,
        )
        self.whole = self.bars.add_task("all", total=1.0, text="", visible=False)
        self.running: dict[str, TaskID] = {}
        self.shares: dict[str, float] = {}
        """Progress of the running pieces."""
        self.lines: dict[str, str] = {}
        """What was last said of them, to stay when they have ended."""
        self.ended = 0

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def message(self, text: str) -> None:
        self.console.print(printable(text), markup=False, emoji=False, soft_wrap=True)

    def begin(
        self, name: str, *, number: int, of: int, left: int | None = None, share: float = 0.0, text: str = ""
    ) -> None:
        if name in self.running:  # a task of Ray's begins again
            self.bars.remove_task(self.running[name])
        self.running[name] = self.bars.add_task(f"[{number}/{of}] {name}", total=1.0, text="")
        self.shares[name] = share
        self.ended = number - 1 if left is None else of - left
        self.bars.update(self.whole, total=of, visible=of > 1)
        self._update(name)
        self.bars.refresh()

    def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
        if name not in self.running:
            return  # news of one of Ray's tasks may come in after its end
        self.shares[name] = share
        if text:
            self.bars.update(self.running[name], text=text)
        if lasting:
            self.lines[name] = text
        self._update(name)

    def end(self, name: str, text: str = "") -> None:
        super().end(name, text)
        self.ended += 1
        self.shares.pop(name, None)
        line = self.lines.pop(name, "")
        if name in self.running:  # of torchrun's workers the first hears the ends of others' cells as well
            bar = self.running.pop(name)
            if line and not text:
                description = next(task.description for task in self.bars.tasks if task.id == bar)
                self.message(f"{description}: {line}")
            self.bars.remove_task(bar)
        self._update("")

    def _update(self, name: str) -> None:
        if name:
            self.bars.update(self.running[name], completed=self.shares[name])
        self.bars.update(self.whole, completed=self.ended + sum(self.shares.values()))

"""What a person sees while something is measured: lines, and below them in a terminal a bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Protocol, TextIO

__all__ = ["Display", "open_display"]


class Display(Protocol):
    """Where a bench reports to."""

    def message(self, text: str) -> None:
        """Say one line that stays."""
        ...

    def begin(self, name: str, *, number: int, of: int) -> None:
        """Note that piece ``number`` of ``of`` is being measured."""
        ...


@contextlib.contextmanager
def open_display(stream: TextIO) -> Iterator[Display]:
    """Open the display that suits a stream: with a bar where it is a terminal and rich is there, else lines alone."""
    if not stream.isatty() or find_spec("rich") is None:
        yield _Plain(stream)
        return
    with _bar(stream) as display:
        yield display


class _Plain:
    """Lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def message(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def begin(self, name: str, *, number: int, of: int) -> None:
        pass


@contextlib.contextmanager
def _bar(stream: TextIO) -> Iterator[Display]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=stream, highlight=False)
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    # Drawn when something begins, not by a clock, which would take time from what is measured.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("")

        class _Bar:
            def message(self, text: str) -> None:
                console.print(text, markup=False, soft_wrap=True)

            def begin(self, name: str, *, number: int, of: int) -> None:
                progress.update(task, total=of, completed=number - 1, description=name, refresh=True)

        yield _Bar()

"""Steps of the program before it imports torch: answer requests that need no command, and handle Ctrl-C.

Imports take seconds. Help on all commands and the version do not wait for them. Ctrl-C meanwhile is one line and exit
status 130: an exception that is raised inside a compiled module's import may come out as another one, and nothing has
to be put in order yet, so the process ends in the signal's handler. A library does neither: this is for ``python -m
steadynorm`` and the console script alone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import PurePath
from types import FrameType

from steadynorm import __version__, _overview

__all__ = ["CLOSED", "INTERRUPTED", "answer_at_once", "end_on_interrupt", "program_of", "raise_on_interrupt"]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

CLOSED = 141
"""Exit status where nobody reads what is printed any more, as shells have it."""

PROGRAMS = ("steadynorm", "steadynorm.bench")
TAKE_A_VALUE = ("-W", "-X")


def program_of(command: Sequence[str]) -> str:
    """Name the program of this package that a command line, as in ``sys.orig_argv``, starts; empty where none."""
    words = iter(command[1:])
    for word in words:
        if word == "-m":
            name = next(words, "")
            return name if name in PROGRAMS else ""
        if word in TAKE_A_VALUE:
            next(words, "")
        elif not word.startswith("-"):
            return PROGRAMS[0] if PurePath(word).stem == PROGRAMS[0] else ""
        elif word == "-c":
            return ""
    return ""


def answer_at_once() -> None:
    """End the process where the command line asks for no command."""
    if program_of(sys.orig_argv) != PROGRAMS[0]:
        return
    try:
        status = _overview.answer(sys.argv[1:], version=__version__)
        sys.stdout.flush()
    except BrokenPipeError:  # as with head; the flush at the end would fail as well
        os._exit(CLOSED)
    if status is not None:
        sys.exit(status)


def end_on_interrupt() -> None:
    """End the process at Ctrl-C from here on, unless it is ignored or handled already."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"steadynorm: interrupted\n")
    os._exit(INTERRUPTED)


if program_of(sys.orig_argv):
    end_on_interrupt()
    answer_at_once()

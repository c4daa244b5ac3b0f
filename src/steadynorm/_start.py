"""Ctrl-C while the program is still importing: one line and exit status 130.

Imports take seconds, and an exception that is raised inside a compiled module's import may come out as another one.
Nothing has to be put in order yet, so the process ends in the signal's handler. A library does not touch signals:
this is for ``python -m steadynorm`` and the console script alone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import PurePath
from types import FrameType

__all__ = ["INTERRUPTED", "end_on_interrupt", "is_program", "raise_on_interrupt"]

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

PROGRAMS = ("steadynorm", "steadynorm.bench")
TAKE_A_VALUE = ("-W", "-X")


def is_program(command: Sequence[str]) -> bool:
    """Whether a command line, as in ``sys.orig_argv``, starts this package's program."""
    words = iter(command[1:])
    for word in words:
        if word == "-m":
            return next(words, "") in PROGRAMS
        if word in TAKE_A_VALUE:
            next(words, "")
        elif not word.startswith("-"):
            return PurePath(word).stem == "steadynorm"
        elif word == "-c":
            return False
    return False


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


if is_program(sys.orig_argv):
    end_on_interrupt()

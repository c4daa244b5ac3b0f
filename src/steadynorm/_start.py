"""Steps of the program before it imports torch: answer requests that need no command, and handle Ctrl-C.

Imports take seconds. Help on all commands and the version do not wait for them. Ctrl-C during the imports prints one
line and exits with status 130. The signal handler ends the process: an exception raised while a compiled module is
imported may surface as another one, and there is nothing to clean up yet. Only ``python -m steadynorm`` and the console
script do this; importing the library does not.
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
"""Exit status after Ctrl-C, as in shells."""

CLOSED = 141
"""Exit status if the reader of the output has closed it, as in shells."""

PROGRAMS = ("steadynorm", "steadynorm.bench")
TAKE_A_VALUE = ("-W", "-X")


def program_of(command: Sequence[str]) -> str:
    """Return the program of this package that a command line (``sys.orig_argv``) starts; empty if none."""
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
    """Answer a command line that runs no command, and end the process."""
    if program_of(sys.orig_argv) != PROGRAMS[0]:
        return
    try:
        status = _overview.answer(sys.argv[1:], version=__version__)
        sys.stdout.flush()
    except BrokenPipeError:  # as with head; the flush at exit would fail too
        os._exit(CLOSED)
    if status is not None:
        sys.exit(status)


def end_on_interrupt() -> None:
    """End the process at Ctrl-C from now on, unless the signal is already ignored or handled."""
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

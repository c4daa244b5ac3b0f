"""Text of ``steadynorm --help``: one line for each command, printed without slow imports."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import TextIO

__all__ = [
    "CANNOT",
    "GROUPS",
    "PROGRAM",
    "answer",
    "check_installed",
    "columns",
    "entry",
    "heading",
    "is_styled",
    "wrapped",
]

PROGRAM = "steadynorm"
CANNOT = 2
"""Exit status if the request cannot be fulfilled."""

GROUPS: dict[str, dict[str, str]] = {
    "Experiments: train networks, and write a report": {
        "compare": "train a network once per normalization",
        "sweep": "which learning rates, batch sizes and depths still train",
        "shift": "what a shift of the data costs, and what adapting wins",
        "stream": "what training and predicting single images costs",
        "scale": "how large a batch can be, and by which recipe",
        "landscape": "whether batch norm smooths the loss",
        "classic": "the first figure of the batch norm paper",
        "statistics": "how well running statistics predict the next batch",
        "recalibration": "how many images bring wiped statistics back",
        "report": "make the report of a run directory again",
    },
    "Models: yours, or those of an experiment": {
        "doctor": "find faults of normalization, and repair them",
        "recalibrate": "measure running statistics again, of averaged weights",
        "adapt": "predict a stream of data that has shifted",
        "export": "fold, export and quantise; check and time the files",
    },
    "Measure: speed and memory beside torch": {
        "bench kernels": "single forward and backward passes",
        "bench layers": "the family of layers, beside plain batch norm",
        "bench step": "whole training steps, and inference",
        "bench workers": "training steps over several processes",
        "bench table": "print a bench's record as a table",
        "warmup": "compile the CPU kernels ahead, once for all processes",
    },
}
"""Heading -> command -> summary of one line."""
FORMER = ("bench statistics", "bench recalibration")
"""Names that are still accepted."""

ABOUT = "Normalization for PyTorch: experiments that end in a report, tools for your own models, and speeds."
END = (
    "steadynorm COMMAND --help shows flags and examples. A first one to run: steadynorm compare --quick",
    "--version prints the version. --tyro-print-completion bash (or zsh) prints the completion for a shell.",
    "Exit status: 0 done, 1 something was found or missed (doctor, export, bench), 2 cannot be done, 130 Ctrl-C.",
)
NARROW = 60
WIDEST = 100


def check_installed(needed: Iterable[str], install: str) -> None:
    """End the process if a package that a command needs is missing; ``install`` is the argument for pip."""
    if missing := [name for name in needed if find_spec(name) is None]:
        print(f"{PROGRAM}: not installed: {', '.join(missing)}. Run: pip install {install}", file=sys.stderr)
        sys.exit(CANNOT)


def answer(arguments: Sequence[str], *, version: str, output: TextIO | None = None) -> int | None:
    """Answer requests that run no command: help on all commands, the version, an unknown name.

    Args:
        arguments: of the command line.
        version: of the package.
        output: default: standard output.

    Returns:
        the exit status; None if a command must run or print its own help.
    """
    output = output or sys.stdout
    first = arguments[0] if arguments else ""
    if "--version" in arguments:
        print(f"{PROGRAM} {version}", file=output)
        return 0
    names = {name: line for group in GROUPS.values() for name, line in group.items()}
    inner = {name.partition(" ")[2]: line for name, line in names.items() if name.startswith(f"{first} ")}
    if first in ("-h", "--help"):
        print(_overview(output), file=output)
    elif not arguments:
        print(_overview(sys.stderr), file=sys.stderr)
        return CANNOT
    elif inner:
        return _answer_group(first, arguments[1:], inner, output)
    elif first.strip() and not first.startswith("-") and (first not in names or " " in first):
        return _unknown(first, dict.fromkeys([*names, *(name.partition(" ")[0] for name in names)]), PROGRAM)
    else:
        return None
    return 0


def _answer_group(group: str, rest: Sequence[str], inner: Mapping[str, str], output: TextIO) -> int | None:
    """Answer requests on a group of commands, such as ``bench``."""
    if not rest:
        print(_overview(sys.stderr, group), file=sys.stderr)
        return CANNOT
    if rest[0] in ("-h", "--help"):
        print(_overview(output, group), file=output)
        return 0
    if f"{group} {rest[0]}" in FORMER or rest[0] in inner or rest[0].startswith("-"):
        return None
    return _unknown(rest[0], inner, f"{PROGRAM} {group}")


def _unknown(name: str, known: Iterable[str], prog: str) -> int:
    near = get_close_matches(name, list(known), n=2, cutoff=0.5)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    if name in near:
        meant = " Give its words apart, without quotes."
    print(f"steadynorm: no command is called {name!a}.{meant} {prog} --help lists all.", file=sys.stderr)
    return CANNOT


def _overview(output: TextIO, only: str = "") -> str:
    """Lay out the commands of all headings, or those whose name begins with ``only``."""
    width = columns()
    lines = [
        f"usage: {PROGRAM} {only or 'COMMAND'} {'COMMAND ' if only else ''}[FLAGS]",
        *([] if only else ["", *wrapped(ABOUT, width)]),
    ]
    for title, commands in GROUPS.items():
        chosen = {name: line for name, line in commands.items() if not only or name.startswith(f"{only} ")}
        if not chosen:
            continue
        lines += ["", *(heading(line, output) for line in wrapped(title, width))]
        for name, line in chosen.items():
            lines += entry(name, line, width=width, at=17)
    end = (f"{PROGRAM} {only} COMMAND --help shows flags and examples.",) if only else END
    lines += ["", *(line for each in end for line in wrapped(each, width))]
    return "\n".join(lines)


def columns() -> int:
    """Return the text width: the terminal's or that of COLUMNS, up to a readable maximum."""
    return max(20, min(shutil.get_terminal_size().columns, WIDEST))


def entry(name: str, text: str, *, width: int, at: int) -> list[str]:
    """Lay out a name and its description, beside each other where there is room."""
    beside = width >= NARROW
    indent = at if beside else 6
    lines = wrapped(text, width, indent=indent)
    if beside and len(name) + 3 <= at:
        return [f"  {name}".ljust(at) + "".join(lines[:1]).strip(), *lines[1:]]
    first, *more = wrapped(name if len(name) + 2 <= width else name.replace(",", ", "), width, indent=2)
    return [first, *(f"    {line.strip()}" for line in more), *lines]


def wrapped(text: str, width: int, *, indent: int = 0) -> list[str]:
    """Break a text into lines without splitting flags or paths."""
    space = " " * indent
    return textwrap.wrap(
        text,
        max(width, indent + 10),
        initial_indent=space,
        subsequent_indent=space,
        break_long_words=False,
        break_on_hyphens=False,
    )


def heading(text: str, output: TextIO) -> str:
    """Make a line bold if the terminal supports it and plain text is not requested (NO_COLOR, TERM=dumb)."""
    return f"\033[1m{text}\033[0m" if is_styled(output) else text


def is_styled(output: TextIO) -> bool:
    """Return whether a stream supports colours."""
    return output.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "dumb")

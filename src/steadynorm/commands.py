"""A table of commands as a command line: parse, run one, and exit as it ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Union

import tyro

from steadynorm import __version__
from steadynorm._start import INTERRUPTED, raise_on_interrupt
from steadynorm.lab.workers import is_first
from steadynorm.printable import printable
from steadynorm.reporting.failure import Interrupted, UserError, reason_of
from steadynorm.reporting.lines import drop_output

__all__ = ["CANNOT", "CLOSED", "INTERRUPTED", "Command", "run_command"]

CANNOT = 2
"""Exit status where what was asked for cannot be done."""

CLOSED = 141
"""Exit status where nobody reads what is printed any more, as shells have it."""

Command = tuple[type[Any], Callable[[Any], int | None]]
"""Flags as a dataclass, and what it does; the function may give an exit status."""


def run_command(
    commands: Mapping[str, Command],
    arguments: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    groups: Mapping[str, str] | None = None,
) -> None:
    """Run one command and exit, as it says or with one of these.

    0 done, 2 it cannot be done (one line says why), 130 interrupted, 141 what is printed has no reader any more.
    ``--version`` alone prints the version.

    Args:
        commands: by name; ``group name`` is a command of a group. No two have the same flags class.
        arguments: default: those of the process.
        prog: what help and errors call the program.
        description: of the program.
        groups: what the commands of each group are about.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(f"steadynorm {__version__}")
        return
    if empty := _empty_value(arguments):
        print(f"steadynorm: {empty}: must not be empty. Give a value, or drop it.", file=sys.stderr)
        sys.exit(CANNOT)
    try:
        raise_on_interrupt()
        config: Any = tyro.cli(
            _choice(commands, groups or {}),
            prog=prog,
            description=f"{description}\n--version prints the version.",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        if hasattr(config, "given"):
            config = replace(config, given=_given_flags(arguments))
        command = next(function for flags, function in commands.values() if isinstance(config, flags))
        status = command(config)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where it may fail
    except UserError as error:
        if is_first():  # of torchrun's workers, which all end with it
            print(f"steadynorm: {error}", file=sys.stderr)
        sys.exit(CANNOT)
    except BrokenPipeError:
        drop_output()
        sys.exit(CLOSED)
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "  # a failed write does not say where
        print(f"steadynorm: {printable(f'{place}{reason_of(error)}')}.", file=sys.stderr)
        sys.exit(CANNOT)
    except Interrupted:
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        if is_first():
            print("steadynorm: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if status:
        sys.exit(status)


def _given_flags(arguments: Sequence[str]) -> tuple[str, ...]:
    """Name the flags on the command line as help has them; a parsed value does not tell whether it was given."""
    names = (word.partition("=")[0] for word in arguments if word.startswith("--"))
    return tuple(sorted({name.replace("_", "-") for name in names}))


def _empty_value(arguments: Sequence[str]) -> str:
    """Name the flag or the word before an empty value, as an unset shell variable gives it; nothing where none is.

    An empty path would mean the current directory.
    """
    for before, word in zip(["steadynorm", *arguments], arguments, strict=False):
        name, equals, value = word.partition("=")
        if not word.strip():
            return before if before.startswith("--") else f"what follows {before}"
        if name.startswith("--") and equals and not value.strip():
            return name
    return ""


def _choice(commands: Mapping[str, Command], groups: Mapping[str, str]) -> Any:  # noqa: ANN401 (a type made at run time)
    """Make the type that tyro parses: a union of flags classes, and of unions for groups."""
    plain = {name: flags for name, (flags, _) in commands.items() if " " not in name}
    members: list[Any] = [
        Annotated[Any, tyro.conf.subcommand(name, constructor=flags)] for name, flags in plain.items()
    ]
    for group, summary in groups.items():
        inner = {name.removeprefix(f"{group} "): one for name, one in commands.items() if name.startswith(f"{group} ")}
        kind = _choice(inner, {})
        members.append(Annotated[Any, tyro.conf.subcommand(group, constructor=kind, description=summary)])
    return Union[(*members, Annotated[None, tyro.conf.Suppress])]  # the last, since a union needs two members

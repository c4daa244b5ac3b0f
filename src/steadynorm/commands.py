"""Run a table of commands as a command line: parse, run one, exit with its status."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Union

import tyro

from steadynorm import __version__
from steadynorm._overview import CANNOT, is_styled
from steadynorm._start import CLOSED, INTERRUPTED, raise_on_interrupt
from steadynorm.command_help import command_help
from steadynorm.lab.workers import is_first
from steadynorm.printable import printable
from steadynorm.reporting.failure import Interrupted, UserError, reason_of
from steadynorm.reporting.lines import drop_output

__all__ = ["CANNOT", "CLOSED", "INTERRUPTED", "Command", "run_command"]

SHELLS = ("bash", "zsh")
Command = tuple[type[Any], Callable[[Any], int | None]]
"""Dataclass of flags and function; the function may return an exit status."""


def run_command(
    commands: Mapping[str, Command],
    arguments: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    groups: Mapping[str, str] | None = None,
    examples: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Run one command and exit with its own status or one of these.

    0 done, 2 cannot be done (one line says why), 130 interrupted, 141 the reader of the output has closed it.
    ``--version`` prints the version; ``--help`` lists the commands or, after a command, its flags.

    Args:
        commands: by name; ``group name`` is a command of a group.
        arguments: arguments to parse; default: those of the process.
        prog: name of the program in help and errors.
        description: of the program.
        groups: group -> summary of its commands.
        examples: command -> lines that show its use.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        raise_on_interrupt()
        status = _run(commands, arguments, prog, description, groups or {}, examples or {})
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a failure is handled
    except UserError as error:
        if is_first():  # all of torchrun's workers end with the same error
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


def _run(
    commands: Mapping[str, Command],
    arguments: Sequence[str],
    prog: str,
    description: str,
    groups: Mapping[str, str],
    examples: Mapping[str, Sequence[str]],
) -> int | None:
    """Run the command of the arguments, and return the exit status."""
    if "--version" in arguments:
        print(f"steadynorm {__version__}")
        return 0
    if empty := _empty_value(arguments):
        raise UserError(f"{empty}: must not be empty. Give a value, or drop it.")
    name, rest = _named(commands, arguments)
    if name and {"-h", "--help"} & set(rest):
        print(command_help(f"{prog} {name}", commands[name][0], examples.get(name, ()), sys.stdout))
        return 0
    tyro._experimental_options["ansi_codes"] = is_styled(sys.stdout)
    how: dict[str, Any] = {"config": (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)}
    if not name:  # help on all commands, a completion, or an error
        _check_shell(arguments)
        tyro.cli(_choice(commands, groups), prog=prog, description=description, args=arguments, **how)
        return CANNOT
    flags, function = commands[name]
    config: Any = tyro.cli(flags, prog=f"{prog} {name}", args=rest, **how)
    if hasattr(config, "given"):
        config = replace(config, given=_given_flags(arguments))
    return function(config)


def _named(commands: Mapping[str, Command], arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the command named by the first words, and the remaining words."""
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if len(arguments) >= words and name in commands and name.count(" ") == words - 1:
            return name, arguments[words:]
    return "", arguments


def _check_shell(arguments: Sequence[str]) -> None:
    """Refuse a completion for an unsupported shell.

    Raises:
        UserError: the shell is not supported.
    """
    for flag, shell in itertools.pairwise(arguments):
        if flag.startswith("--tyro-") and flag.endswith("-completion") and shell not in SHELLS:
            raise UserError(f"{flag}: must be {' or '.join(SHELLS)}, got {shell}.")


def _given_flags(arguments: Sequence[str]) -> tuple[str, ...]:
    """List the flags given on the command line, spelled as in help; parsed values do not show which were given."""
    names = (word.partition("=")[0] for word in arguments if word.startswith("--"))
    return tuple(sorted({name.replace("_", "-") for name in names}))


def _empty_value(arguments: Sequence[str]) -> str:
    """Return the flag or word before an empty value, such as an unset shell variable; empty if there is none.

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
    return Union[(*members, Annotated[None, tyro.conf.Suppress])]  # None comes last: a union needs two members

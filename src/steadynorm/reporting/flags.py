"""Flags as text: their names, the command that repeats what was done, and lists of values that make no sense."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steadynorm.reporting.failure import UserError

__all__ = ["as_config", "check_values", "command_of", "flag"]

# where it runs, where results go and how they are shown; not what is computed
NOT_STORED = ("on", "address", "out", "resume", "log", "json", "given")


def flag(name: str) -> str:
    """Return the command-line flag of a configuration field."""
    return f"--{name.replace('_', '-')}"


def check_values(name: str, values: Sequence[Any], *, may_be_empty: bool = False) -> None:
    """Refuse a list of values that is empty, or has one twice: the two would be one run.

    Args:
        name: of the configuration field.
        values: as given.
        may_be_empty: whether it may have none.

    Raises:
        UserError: there is none, or one appears twice.
    """
    if not values and not may_be_empty:
        raise UserError(f"{flag(name)}: at least one value is needed.")
    if len(set(values)) < len(values):
        raise UserError(f"{flag(name)}: every value may appear once, got {' '.join(map(str, values))}.")


def as_config(config: Any) -> dict[str, Any]:  # noqa: ANN401 (any command's dataclass)
    """Return the flags as a record keeps them: those that decide what is computed, as JSON."""
    return {key: _to_json(value) for key, value in _stored_values(config).items()}


def _stored_values(config: Any) -> dict[str, Any]:  # noqa: ANN401 (any experiment's dataclass)
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in NOT_STORED}


def command_of(name: str, config: Any) -> str:  # noqa: ANN401 (any command's dataclass)
    """Return the shell command that repeats what was done."""
    words, flags = ["steadynorm", *name.split()], list[str]()
    given = getattr(config, "given", ())
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    positional = {f.name for f in dataclasses.fields(config) if "Positional" in str(f.type)}
    for key, value in _stored_values(config).items():
        if value == defaults[key] and flag(key) not in given:  # --quick would replace a default that was not given
            continue
        if key in positional:  # before the flags, the last of which may take several values
            words.append(str(value))
            continue
        flags.append(flag(key))
        if not isinstance(value, bool):
            flags += [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
    return shlex.join(words + flags)


def _to_json(value: Any) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value

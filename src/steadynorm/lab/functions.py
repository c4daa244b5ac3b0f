"""User functions, given on the command line as ``package.module:name``."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from steadynorm.reporting.failure import UserError, one_line

__all__ = ["call_function", "find_named", "line_of"]

NOT_THEIRS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
"""Folders of torch and of this package."""


def find_named(what: str) -> Any:  # noqa: ANN401 (whatever it is)
    """Import ``package.module:name``; also finds modules in the working directory.

    Raises:
        UserError: it cannot be found or imported.
    """
    module, _, name = what.partition(":")
    if (here := str(Path.cwd())) not in sys.path:  # as with python -m
        sys.path.insert(0, here)
    try:
        imported = importlib.import_module(module)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{module}: cannot be imported ({one_line(error)}). Run from a folder where Python finds it."
        ) from error
    except Exception as error:  # importing runs the user's code
        raise UserError(f"{module}: fails while it is imported ({one_line(error)}). Fix it.") from error
    try:
        return getattr(imported, name)
    except AttributeError as error:
        raise UserError(f"{module}: has no {name!r}.") from error


def call_function(what: str, *arguments: object) -> Any:  # noqa: ANN401 (whatever it gives)
    """Call a user function.

    Raises:
        UserError: it cannot be found or imported, or fails.
    """
    found = find_named(what)
    try:
        return found(*arguments)
    except Exception as error:  # the user's function may raise anything
        raise UserError(f"{what}: failed with {one_line(error)}.") from error


def line_of(error: BaseException) -> str:
    """Name the line of the user's code that raised an error, as `` (file.py, line 9)``; empty if torch raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(NOT_THEIRS)]
    return f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""

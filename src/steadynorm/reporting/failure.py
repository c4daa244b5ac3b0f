"""The one error type that a command turns into a single line and exit status 2."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from steadynorm.printable import printable

__all__ = ["Interrupted", "UserError", "check_known", "one_line", "reason_of"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the display has said how to continue."""


class UserError(Exception):
    """What the user asked for cannot be done; the message says why and what to do, in one line.

    Args:
        message: may quote what files hold; it is kept as one line of printable characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(re.sub(r"\s*\n\s*", " ", message)))


def reason_of(error: OSError) -> str:
    """Return the reason of a system or library error in one line, without a full stop."""
    text = error.strerror or str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def one_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__


def check_known(flag: str, names: Iterable[str], known: Collection[str], *, what: str) -> None:
    """Refuse a name that is none of those known.

    Args:
        flag: that the names were given by.
        names: as given.
        known: what can be given.
        what: the names are of, as in ``no <what> is called``.

    Raises:
        UserError: a name is unknown; the message lists those that are known.
    """
    for name in names:
        if name not in known:
            raise UserError(f"{flag}: no {what} is called {name!r}. Choose from {', '.join(known)}.")

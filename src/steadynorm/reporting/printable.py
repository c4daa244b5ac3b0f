"""Text from files as a terminal may be given it."""

from __future__ import annotations

__all__ = ["printable"]

ALLOWED = "\n\N{NO-BREAK SPACE}"


def printable(text: str) -> str:
    r"""Write control, format and other invisible characters as escapes, so that they cannot steer a terminal.

    >>> print(printable("a\x1b[31mb"))
    a\x1b[31mb

    Args:
        text: any; line breaks and no-break spaces stay.
    """
    return "".join(one if one.isprintable() or one in ALLOWED else _escape(one) for one in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()

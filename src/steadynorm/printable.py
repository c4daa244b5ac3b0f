"""Make text from files and models safe to print in a terminal."""

from __future__ import annotations

__all__ = ["printable", "printable_line"]

ALLOWED = "\n\N{NO-BREAK SPACE}"


def printable(text: str) -> str:
    r"""Write control, format and other invisible characters as escapes, so that they cannot control a terminal.

    >>> print(printable("a\x1b[31mb"))
    a\x1b[31mb

    Args:
        text: any text; line breaks and no-break spaces stay.
    """
    return "".join(one if one.isprintable() or one in ALLOWED else _escape(one) for one in text)


def printable_line(text: str) -> str:
    r"""Write line breaks as escapes too, so that a name cannot imitate a separate line.

    >>> print(printable_line("a\nb"))
    a\nb
    """
    return printable(text).replace("\n", "\\n")


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()

"""Format words for all reports: lists, counts, and names of arms and data."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["capital", "counted", "first_fitting", "listing", "seeds_label"]

HEADLINE = 90
"""Characters of a headline, at most."""


def capital(sentence: str) -> str:
    """Begin with a capital letter and leave the rest alone."""
    return sentence[:1].upper() + sentence[1:]


def listing(items: Sequence[str]) -> str:
    """Join words as in a sentence: a, b and c."""
    return " and ".join([*([", ".join(items[:-1])] if len(items) > 1 else []), *items[-1:]])


def counted(number: int, word: str) -> str:
    """Count things: ``1 epoch``, ``20 epochs``."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def seeds_label(seeds: int) -> str:
    """State the number of seeds behind each value."""
    return "one seed, so no spread is known" if seeds == 1 else f"{seeds} seeds each"


def first_fitting(*sentences: str) -> str:
    """Choose the first sentence that is short enough for a headline, or the last."""
    return next((one for one in sentences if len(one) <= HEADLINE), sentences[-1])

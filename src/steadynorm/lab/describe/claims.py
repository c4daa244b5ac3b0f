"""Claims on arms, and why one is not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from steadynorm.lab.describe.arms import Arm
from steadynorm.reporting.claims import compare
from steadynorm.reporting.numbers import number
from steadynorm.reporting.report import Block, Claim, Section
from steadynorm.reporting.words import capital, counted, listing

__all__ = ["PAIR", "absent_because", "absent_of", "expected", "left_out", "tolerated", "with_and_without"]


ROUNDING = 1e-9  # rounding of differences between shares


def expected(*blocks: Block | None) -> Section:
    """Make the section that compares expectations with measurements."""
    return Section(title="What was expected, and what was measured", short="Expectations", blocks=blocks)


PAIR = ("with batch norm", "without normalization")
"""The two arms of :func:`with_and_without`."""


def absent_because(arm: Arm | None, which: str) -> str:
    """Describe why an arm has no number; ``which``: what its networks have in common, one of :data:`PAIR`."""
    if arm is None:
        return f"No network {which} was trained."
    if arm.lost:
        return f"{capital(arm.label)}: {arm.lost}."
    if arm.waiting or not arm.seeds:
        return f"{capital(arm.label)}: {len(arm.ended)} of {counted(arm.seeds, 'network')} measured."
    return f"{capital(arm.label)}: the measurements do not show it."


def absent_of(arms: tuple[Arm | None, Arm | None], quantity: str) -> str:
    """Say which of :data:`PAIR` has no number of a quantity, and why."""
    first, _ = arms
    lost = next((place for place, arm in enumerate(arms) if arm is None or arm.lost), None)
    place = lost if lost is not None else int(first is not None and first[quantity] is not None)
    return absent_because(arms[place], PAIR[place])


def with_and_without(
    claim: str,
    arms: tuple[Arm | None, Arm | None],
    quantity: str,
    what: str,
    shown: Callable[[float], str] = number,
    *,
    higher: bool = False,
) -> Claim:
    """Judge whether a quantity is lower with batch norm than without, or higher; see :func:`compare`."""
    first, second = (arm[quantity] if arm else None for arm in arms)
    names = ("with batch norm", "without")
    absent = absent_of(arms, quantity)
    return compare(claim, first, second, higher=higher, what=what, names=names, shown=shown, absent=absent)


def tolerated(limit: float, images: int) -> float:
    """Return a limit on lost accuracy that no single image breaks: at least one image, if their number is known."""
    return max(limit, 1 / images + ROUNDING) if images else limit


def left_out(arms: Iterable[Arm]) -> str:
    """Name the networks that diverged, at the end of a lead; empty if none did."""
    lost = [f"{len(arm.diverged_at_step)} of {arm.seeds} with {arm.label}" for arm in arms if arm.lost]
    return f" Diverged, and left out of final means: {listing(lost)}." if lost else ""

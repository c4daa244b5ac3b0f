"""Claims on arms, and why one is not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from steadynorm.lab.describe.arms import Arm
from steadynorm.reporting.claims import compare
from steadynorm.reporting.numbers import number
from steadynorm.reporting.report import Block, Claim, Section
from steadynorm.reporting.words import capital, listing

__all__ = ["absent_because", "expected", "left_out", "tolerated", "with_and_without"]


ROUNDING = 1e-9  # of differences between shares


def expected(*blocks: Block | None) -> Section:
    """Make the section that holds what was expected against what was measured."""
    return Section(title="What was expected, and what was measured", short="Expectations", blocks=blocks)


def absent_because(arm: Arm | None) -> str:
    """Say why an arm has no number."""
    if arm is None:
        return "The arm was not trained."
    if arm.lost:
        return f"{capital(arm.lost)}."
    waits = arm.waiting or not arm.seeds
    return f"{len(arm.ended)} of {arm.seeds} networks are measured." if waits else "What was measured does not tell."


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
    lost = (arm for arm in arms if arm is None or arm.lost)
    absent = absent_because(next(lost, arms[1 if first else 0]))
    names = ("with batch norm", "without")
    return compare(claim, first, second, higher=higher, what=what, names=names, shown=shown, absent=absent)


def tolerated(limit: float, images: int) -> float:
    """Give a limit on lost accuracy that no single image breaks: of few images, one; of none that are known, itself."""
    return max(limit, 1 / images + ROUNDING) if images else limit


def left_out(arms: Iterable[Arm]) -> str:
    """Say which networks diverged, at the end of a lead; nothing where none did."""
    lost = [f"{len(arm.diverged_at_step)} of {arm.seeds} with {arm.label}" for arm in arms if arm.lost]
    return f" Diverged, and left out of final means: {listing(lost)}." if lost else ""

"""Format numbers for reports: one rule for each kind of quantity, and a dash for missing numbers."""

from __future__ import annotations

import math

from steadynorm.reporting.seeds import Spread

__all__ = [
    "NONE",
    "number",
    "percent",
    "percent_spread",
    "points",
    "rate",
    "seconds",
    "seed_count",
    "signed_points",
    "spread_note",
]

NONE = "—"
"""Placeholder for values that were not measured."""

SPACE = "\N{NO-BREAK SPACE}"


def percent(share: float | None, *, digits: int = 1) -> str:
    """Write a share in [0, 1] as a percentage."""
    return NONE if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}{SPACE}%"


def points(difference: float, *, digits: int = 1) -> str:
    """Write the size of a difference between two shares in percentage points, without its sign."""
    return f"{100 * abs(difference):.{digits}f}{SPACE}points"


def signed_points(value: Spread | None) -> str:
    """Write a difference between two shares in percentage points, with its sign, and its spread over the seeds."""
    if value is None:
        return NONE
    spread = "" if value.sd is None else f"{SPACE}±{SPACE}{100 * value.sd:.1f}"
    return f"{100 * value.mean:+.1f}{spread}{SPACE}points"


def percent_spread(value: Spread | None) -> str:
    """Write the mean share, with the standard deviation where there are several seeds."""
    if value is None:
        return NONE
    if value.sd is None:
        return percent(value.mean)
    return f"{100 * value.mean:.1f}{SPACE}±{SPACE}{100 * value.sd:.1f}{SPACE}%"


def seed_count(value: Spread) -> str:
    """Say over how many seeds a spread is, in one piece."""
    return f"n{SPACE}={SPACE}{value.n}"


def spread_note(value: Spread | None) -> str:
    """Write the range of a share over its seeds, or that there is only one."""
    if value is None:
        return ""
    if value.sd is None:
        return "one seed"
    return f"{100 * value.low:.1f} to {100 * value.high:.1f}{SPACE}%, {seed_count(value)}"


def number(value: float | None, *, digits: int = 3) -> str:
    """Write a number to some significant digits, without an exponent where that stays short."""
    if value is None or not math.isfinite(value):
        return NONE
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def rate(value: float) -> str:
    """Write a learning rate."""
    return f"{value:g}"


def seconds(value: float | None) -> str:
    """Write a duration, in minutes where it is long."""
    if value is None or not math.isfinite(value):
        return NONE
    if value >= 90:
        return f"{value / 60:.1f}{SPACE}min"
    return f"{value:.{1 if value >= 1 else 2}f}{SPACE}s"

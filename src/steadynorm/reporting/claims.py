"""Rules for verdicts on claims: which of two quantities is higher, and whether a network is above chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from steadynorm.reporting.chance import Chance
from steadynorm.reporting.numbers import percent
from steadynorm.reporting.report import Claim
from steadynorm.reporting.seeds import Spread, are_apart
from steadynorm.reporting.words import capital, listing

__all__ = ["compare", "is_guessing", "judge", "too_few", "unless_guessing"]


def judge(claim: str, met: bool | None, measured: str) -> Claim:
    """Build a claim with its verdict.

    Args:
        claim: what was expected, as a sentence.
        met: whether the expectation was met; None if it was not measured.
        measured: the numbers, or why there are none, as a sentence.
    """
    verdict: Literal["met", "not met", "not measured"] = "not measured" if met is None else "met" if met else "not met"
    return Claim(claim=claim, verdict=verdict, measured=measured)


def compare(
    claim: str,
    first: Spread | None,
    second: Spread | None,
    *,
    higher: bool,
    what: str,
    names: tuple[str, str],
    shown: Callable[[float], str],
    absent: str,
) -> Claim:
    """Judge which of two quantities is higher: met where the means say so and the ranges of the seeds do not overlap.

    Args:
        claim: what was expected, as a sentence.
        first: the quantity that is expected to be higher, or lower.
        second: the quantity to compare with.
        higher: whether the first is expected to be the higher one.
        what: the quantity's name.
        names: of the two, as in ``81.2 % <with batch norm>``.
        shown: writes a value.
        absent: says, in a sentence, why one of them is None.
    """
    if first is None or second is None:
        return judge(claim, None, absent)
    ahead = first.mean > second.mean if higher else first.mean < second.mean
    apart = are_apart(first, second)
    overlap = "" if apart or first.n < 2 else "; the seeds' ranges overlap"
    values = f"{shown(first.mean)} {names[0]}, {shown(second.mean)} {names[1]}"
    return judge(claim, ahead and apart, f"{capital(what)}: {values}{overlap}.")


def is_guessing(accuracy: Spread | None, chance: Chance) -> bool:
    """Return whether the network of some seed is not surely better than guessing; False without networks."""
    return accuracy is not None and not chance.is_beaten(accuracy.low)


def too_few(chance: Chance) -> str:
    """Return a headline that no network is distinguishable from guessing; empty if one could be."""
    if chance.is_beatable:
        return ""
    share = percent(chance.share, digits=0)
    return f"{chance.images:,} validation images, {share} of one class, cannot tell a network from guessing"


def unless_guessing(item: Claim, chance: Chance, networks: Mapping[str, Spread | None]) -> Claim:
    """Withdraw a verdict that rests on a network at chance.

    Args:
        item: the judged claim.
        chance: accuracy of guessing.
        networks: name -> accuracy over the seeds, for the networks that the verdict rests on; None is ignored.
    """
    guessing = {name: one for name, one in networks.items() if one and is_guessing(one, chance)}
    if not guessing or item.verdict == "not measured":
        return item
    found = listing([f"{name} at {percent(one.low)}" for name, one in guessing.items()])
    measured = f"{capital(found)}, not surely above the {percent(chance.share)} of guessing. {item.measured}"
    return replace(item, verdict="not measured: at chance", measured=measured)

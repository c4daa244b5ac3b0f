"""What was expected of a sweep, each held against what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.analysis import Spread
from steadynorm.lab.chance import Chance
from steadynorm.lab.report.document import Expectation
from steadynorm.lab.report.quantities import number, percent, points, rate
from steadynorm.lab.report.question import unless_guessing
from steadynorm.lab.report.sweep.summary import Border, Place, geometric_mean
from steadynorm.lab.report.wording import arm_label, batch_arm, plain_arm

__all__ = ["expectations"]


def expectations(found: Sequence[Place], limits: Sequence[Border], chance: Chance) -> tuple[Expectation, ...]:
    """Judge the article's expectation, Bjorck's, and which arm is ahead at its best rate.

    The first and the last need arms that have learned something at their best rate; the second has a test of its own.
    """
    arms = [place.arm for place in found]
    batch, plain = batch_arm(arms), plain_arm(arms)
    best = {arm_label(arm): _best(found, arm) for arm in (batch, plain) if arm}
    networks = {arm: one[1] for arm, one in best.items() if one}
    return (
        unless_guessing(_explodes(found, batch, plain), chance, networks),
        _bears_more(limits, batch, plain),
        unless_guessing(_best_is_better(found, batch, plain), chance, networks),
    )


def _explodes(found: Sequence[Place], batch: str | None, plain: str | None) -> Expectation:
    claim = "Without normalization the higher rates explode, with batch norm none does."
    here = [place for place in found if place.arm in (batch, plain)]
    if batch is None or plain is None or any(place.waiting or not place.seeds for place in here):
        return Expectation(claim=claim, verdict="not measured", measured="Not all of these networks have ended.")
    counts = {arm: sum(len(place.exploded_at_step) for place in here if place.arm == arm) for arm in (batch, plain)}
    seeds = {arm: sum(place.seeds for place in here if place.arm == arm) for arm in (batch, plain)}
    return Expectation(
        claim=claim,
        verdict="met" if counts[plain] and not counts[batch] else "not met",
        measured=f"Exploded: {counts[plain]} of {seeds[plain]} networks without, "
        f"{counts[batch]} of {seeds[batch]} with batch norm.",
    )


def _bears_more(limits: Sequence[Border], batch: str | None, plain: str | None) -> Expectation:
    claim = "The largest rate that trains is larger with batch norm."
    pairs = [
        (border, other)
        for border in limits
        for other in limits
        if (border.arm, other.arm) == (batch, plain)
        and (border.depth, border.batch_size) == (other.depth, other.batch_size)
        and border.rates
        and other.rates
    ]
    if not pairs:
        return Expectation(claim=claim, verdict="not measured", measured="No search is over: --largest-rate.")
    texts = [
        f"{border.depth} convolutions, batch {border.batch_size}: {number(geometric_mean(border.rates))} with, "
        f"{number(geometric_mean(other.rates))} without"
        for border, other in pairs
    ]
    apart = all(min(border.rates) > max(other.rates) for border, other in pairs)
    return Expectation(claim=claim, verdict="met" if apart else "not met", measured=f"{'; '.join(texts)}.")


def _best_is_better(found: Sequence[Place], batch: str | None, plain: str | None) -> Expectation:
    claim = "Each at its own best rate, batch norm is ahead."
    texts, ahead = [], []
    for depth, batch_size in dict.fromkeys((place.depth, place.batch_size) for place in found):
        here = [place for place in found if (place.depth, place.batch_size) == (depth, batch_size)]
        best = {arm: _best(here, arm) for arm in (batch, plain)}
        mine, its = best[batch], best[plain]
        if mine is None or its is None:
            continue
        (mine_rate, mine_accuracy), (its_rate, its_accuracy) = mine, its
        ahead.append(mine_accuracy.low > its_accuracy.high)
        texts.append(
            f"{depth} convolutions, batch {batch_size}: {percent(mine_accuracy.mean)} at {rate(mine_rate)} with, "
            f"{percent(its_accuracy.mean)} at {rate(its_rate)} without"
            f" ({points(mine_accuracy.mean - its_accuracy.mean)})"
        )
    if not texts:
        return Expectation(claim=claim, verdict="not measured", measured="No pair of networks has ended.")
    return Expectation(claim=claim, verdict="met" if all(ahead) else "not met", measured=f"{'; '.join(texts)}.")


def _best(found: Sequence[Place], arm: str | None) -> tuple[float, Spread] | None:
    """Give the rate of the highest mean accuracy, and that accuracy."""
    known = [(place.lr, place.accuracy) for place in found if place.arm == arm and place.accuracy]
    return max(known, key=lambda pair: pair[1].mean, default=None)

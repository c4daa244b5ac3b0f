"""What the papers expect of the loss around the weights, each claim held against what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steadynorm.lab.analysis import Spread
from steadynorm.lab.chance import Chance
from steadynorm.lab.noisy_batch_norm import NOISY
from steadynorm.lab.report.document import Expectation, Verdict
from steadynorm.lab.report.landscape.courses import ArmCourses
from steadynorm.lab.report.landscape.measures import find_quantity, over_looks, ratio
from steadynorm.lab.report.quantities import number, percent, points
from steadynorm.lab.report.question import pair, unless_guessing
from steadynorm.lab.report.wording import arm_label, capital

__all__ = ["expectations", "measured_pair", "times"]

ORDERS = 30.0
""""Almost two orders of magnitude", in which the two arms' gradients are to differ."""
AS_WELL = 0.02
"""How far behind in validation accuracy still counts as "as well": two points."""

MISSING = "One of the two arms has no number."


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A quantity that is larger without normalization."""

    claim: str
    key: str
    at_least: float = 1.0
    """How many times as large it must be."""


CLAIMS = (
    Claim(claim="Along the gradient the loss varies less with batch norm.", key="loss_range"),
    Claim(claim="The gradient changes less along itself with batch norm.", key="gradient_change"),
    Claim(claim="It changes less by almost two orders of magnitude.", key="gradient_change", at_least=ORDERS),
    Claim(claim="The effective smoothness β is smaller with batch norm.", key="smoothness"),
    Claim(claim="The loss varies less also with steps in proportion to the weights.", key="free_loss_range"),
    Claim(claim="The gradient changes less, in proportion, also with those steps.", key="free_gradient_change"),
    Claim(claim="β is smaller also for weights of norm 1.", key="free_smoothness"),
    Claim(claim="Gradients are smaller with batch norm.", key="gradient_norm"),
)


def expectations(arms: Sequence[ArmCourses], chance: Chance) -> tuple[Expectation, ...]:
    """Judge what Santurkar et al. 2018 and Bjorck et al. 2018 found, by medians over the looks and means over seeds.

    Each needs the networks that it compares to have learned something.
    """
    rises = (
        ("The longest step along the gradient raises the loss less often with batch norm.", "raised"),
        ("So it does with steps in proportion to the weights.", "free_raised"),
    )
    batch, plain = measured_pair(arms)
    judged = (*(_judged(arms, claim) for claim in CLAIMS), *(_rarer(arms, claim, key) for claim, key in rises))
    return (
        *(unless_guessing(item, chance, _networks(batch, plain)) for item in judged),
        *_noise(arms, chance),
    )


def _networks(*arms: ArmCourses | None) -> dict[str, Spread | None]:
    return {arm_label(arm.arm): arm.val_accuracy for arm in arms if arm}


def measured_pair(arms: Sequence[ArmCourses]) -> tuple[ArmCourses | None, ArmCourses | None]:
    """Find the arm that is batch norm and the one without normalization, where they have networks."""
    return pair([arm for arm in arms if arm.courses])


def times(factor: Spread, *, less: str = "less", more: str = "more", same: str = "as much") -> str:
    """Say how many times less something is with batch norm, from how many times as much it is without.

    Where seeds disagree on the direction, it is about the same.
    """
    if factor.low <= 1 <= factor.high and factor.n > 1:
        return f"about {same}"
    if factor.mean >= 1:
        return f"{number(factor.mean, digits=2)} times {less}"
    return f"{number(1 / factor.mean if factor.mean else None, digits=2)} times {more}"


def _judged(arms: Sequence[ArmCourses], claim: Claim) -> Expectation:
    batch, plain = measured_pair(arms)
    quantity = find_quantity(claim.key)
    with_norm = over_looks(batch, quantity) if batch else None
    without = over_looks(plain, quantity) if plain else None
    factor = ratio(plain, batch, quantity) if batch and plain else None
    if with_norm is None or without is None or factor is None:
        return Expectation(claim=claim.claim, verdict="not measured", measured=MISSING)
    verdict: Verdict = "met" if factor.mean > claim.at_least else "not met"
    seeds = f", from {number(factor.low)} to {number(factor.high)} over the seeds" if factor.n > 1 else ""
    split = " The seeds disagree." if factor.low <= claim.at_least <= factor.high and factor.n > 1 else ""
    return Expectation(
        claim=claim.claim,
        verdict=verdict,
        measured=f"{quantity.title}: {number(with_norm.mean)} with batch norm, {number(without.mean)} without, "
        f"{number(factor.mean)} times as much{seeds}.{split}",
    )


def _rarer(arms: Sequence[ArmCourses], claim: str, key: str) -> Expectation:
    batch, plain = measured_pair(arms)
    with_norm = over_looks(batch, find_quantity(key)) if batch else None
    without = over_looks(plain, find_quantity(key)) if plain else None
    if with_norm is None or without is None:
        return Expectation(claim=claim, verdict="not measured", measured=MISSING)
    return Expectation(
        claim=claim,
        verdict="met" if with_norm.mean < without.mean else "not met",
        measured=f"At {percent(with_norm.mean)} of the looks with batch norm, at {percent(without.mean)} without.",
    )


def _noise(arms: Sequence[ArmCourses], chance: Chance) -> tuple[Expectation, ...]:
    noisy = next((arm for arm in arms if arm.arm == NOISY and arm.courses), None)
    batch, plain = measured_pair(arms)
    as_well = _accuracy("Batch norm with noise behind it trains as well as batch norm.", noisy, batch, allowed=AS_WELL)
    better = _accuracy("Batch norm with noise behind it trains better than no normalization.", noisy, plain, allowed=0)
    return (
        unless_guessing(as_well, chance, _networks(noisy, batch)),
        unless_guessing(better, chance, _networks(noisy, plain)),
    )


def _accuracy(claim: str, arm: ArmCourses | None, other: ArmCourses | None, *, allowed: float) -> Expectation:
    """Judge whether ``arm`` ends at most ``allowed`` behind ``other``."""
    missing = next((one for one in (arm, other) if one is None or one.val_accuracy is None), None)
    if arm is None or other is None or arm.val_accuracy is None or other.val_accuracy is None:
        why = f"{capital(arm_label(missing.arm))} diverged." if missing else "One of the two arms was not trained."
        return Expectation(claim=claim, verdict="not measured", measured=why)
    ahead = arm.val_accuracy.mean - other.val_accuracy.mean
    side = "ahead" if ahead > 0 else "behind"
    tolerance = f'; "as well" allows {points(allowed, digits=0)}' if allowed else ""
    return Expectation(
        claim=claim,
        verdict="met" if ahead >= -allowed else "not met",
        measured=f"Validation accuracy {percent(arm.val_accuracy.mean)} against {percent(other.val_accuracy.mean)} "
        f"with {arm_label(other.arm)}: {points(ahead)} {side} ({_seeds(arm, other)}){tolerance}.",
    )


def _seeds(*arms: ArmCourses) -> str:
    """Say how many networks of each arm trained to the end, and how many did not."""
    counts = [arm.val_accuracy.n for arm in arms if arm.val_accuracy]
    lost = [f"{len(arm.diverged)} diverged with {arm_label(arm.arm)}" for arm in arms if arm.diverged]
    return "; ".join(["n = " + " and ".join(map(str, dict.fromkeys(counts))), *lost])

"""What was expected of batch size 1, each held against what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.analysis import Spread
from steadynorm.lab.chance import Chance
from steadynorm.lab.report.document import Expectation
from steadynorm.lab.report.quantities import percent, points, signed_points
from steadynorm.lab.report.question import is_guessing, unless_guessing
from steadynorm.lab.report.stream.summary import Single, Way
from steadynorm.lab.report.wording import arm_label

__all__ = ["GATED", "LIMIT", "PLAIN", "expectations", "lost"]

LIMIT = 0.15
"""The article's: a larger drop falsifies the gated layer."""
GATED = "gated_batch_norm"
PLAIN = "batch_norm"
EVALUATED = "gated"
"""The way to adapt that makes gated layers of batch norm's."""
SAFE = 0.005
"""What adapting may cost."""


def lost(drop: Spread) -> str:
    """Say how much accuracy was lost, or won."""
    word = "loses" if drop.mean >= 0 else "gains"
    return f"{word} {points(drop.mean)}"


def expectations(
    found: Sequence[Single], met: Sequence[Way], default: Spread | None, chance: Chance
) -> tuple[Expectation, ...]:
    """Judge what was expected.

    Args:
        found: the arms at batch size 1.
        met: the ways in which the default build meets single images.
        default: accuracy of the default build.
        chance: accuracy of guessing.
    """
    arms = {single.arm: single for single in found}
    gated, plain = arms.get(GATED), arms.get(PLAIN)
    judged = (
        _falsifier(gated, default, chance.share),
        _evaluated([way for way in met if way.method == EVALUATED]),
        _of_two(_pays_less(gated, plain), gated, plain, chance),
        _statistics_are_to_blame(plain),
        *(_costs_nothing(way) for way in met if way.method == "gate"),
    )
    return tuple(unless_guessing(item, chance, {"the default build": default}) for item in judged)


def _of_two(item: Expectation, one: Single | None, other: Single | None, chance: Chance) -> Expectation:
    """Take a verdict on two arms back where both may be guessing; that one of them fails is a finding."""
    accuracies = {arm_label(arm.arm): arm.accuracy for arm in (one, other) if arm}
    both = all(accuracy and is_guessing(accuracy, chance) for accuracy in accuracies.values())
    return unless_guessing(item, chance, accuracies) if both else item


def _falsifier(gated: Single | None, default: Spread | None, chance: float) -> Expectation:
    claim = f"The gated layer loses at most {points(LIMIT, digits=0)} at batch size 1 (a larger drop falsifies it)."
    if gated is None or gated.drop is None:
        if gated and gated.diverged_at_step:
            return Expectation(claim=claim, verdict="not met", measured="Every run diverged.")
        return Expectation(claim=claim, verdict="not measured", measured="The gated layer was not trained.")
    if default and default.mean < LIMIT + chance:
        measured = f"The default build itself reaches {percent(default.mean)}, too near chance to lose so much."
        return Expectation(claim=claim, verdict="not measured", measured=measured)
    drop = gated.drop
    spread_text = "one seed" if drop.n == 1 else f"{signed_points(drop)}, {drop.n} seeds, at most {points(drop.high)}"
    return Expectation(
        claim=claim,
        verdict="met" if drop.high <= LIMIT and not gated.diverged_at_step else "not met",
        measured=f"It {lost(drop)} ({spread_text}), {points(LIMIT - drop.high)} "
        f"{'within' if drop.high <= LIMIT else 'beyond'} the limit at worst.",
    )


def _evaluated(gated: Sequence[Way]) -> Expectation:
    claim = "Nor does it lose more when only evaluation is at batch size 1, as gated layers of the default build."
    gains = [way.gain for way in gated if way.gain is not None]
    if not gains:
        return Expectation(claim=claim, verdict="not measured", measured="It was not measured.")
    least = min(gains, key=lambda gain: gain.low)
    return Expectation(
        claim=claim,
        verdict="met" if least.low >= -LIMIT else "not met",
        measured=f"{signed_points(least)} beside the stored statistics in the worse of {len(gains)} orders.",
    )


def _pays_less(gated: Single | None, plain: Single | None) -> Expectation:
    claim = "At batch size 1 the gated layer loses less than plain batch norm."
    if gated is None or plain is None or gated.accuracy is None or plain.accuracy is None:
        return Expectation(claim=claim, verdict="not measured", measured="Not both were trained to the end.")
    return Expectation(
        claim=claim,
        verdict="met" if gated.accuracy.low > plain.accuracy.high else "not met",
        measured=f"{percent(gated.accuracy.mean)} with the gate, {percent(plain.accuracy.mean)} without.",
    )


def _statistics_are_to_blame(plain: Single | None) -> Expectation:
    claim = "Plain batch norm fails in evaluation, by its running statistics and not by its weights."
    if plain is None or plain.accuracy is None or plain.recalibrated is None or plain.drop is None:
        return Expectation(claim=claim, verdict="not measured", measured="It was not trained to the end.")
    won = plain.recalibrated.mean - plain.accuracy.mean
    return Expectation(
        claim=claim,
        verdict="met" if won > plain.drop.mean / 2 > 0 else "not met",
        measured=f"It {lost(plain.drop)}; statistics measured anew win {points(won)} of them back."
        if won >= 0
        else f"It {lost(plain.drop)}; statistics measured anew lose {points(won)} more.",
    )


def _costs_nothing(way: Way) -> Expectation:
    name = way.order.replace("_", "-")
    claim = f"The gate costs the default build at most {points(SAFE)} on single images, {name}."
    if way.gain is None:
        return Expectation(claim=claim, verdict="not measured", measured="The stream was not measured.")
    return Expectation(
        claim=claim,
        verdict="met" if way.gain.low >= -SAFE else "not met",
        measured=f"{signed_points(way.gain)} beside the stored statistics.",
    )

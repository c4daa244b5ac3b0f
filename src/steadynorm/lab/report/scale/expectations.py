"""What the papers let expect of the recipe and of its steps, held against what was measured at the largest batch."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.analysis import Spread, are_apart
from steadynorm.lab.chance import chance_of
from steadynorm.lab.recipe import find_recipe
from steadynorm.lab.records import Record
from steadynorm.lab.report.document import Expectation, Verdict
from steadynorm.lab.report.quantities import percent, points
from steadynorm.lab.report.question import unless_guessing
from steadynorm.lab.report.scale.summary import Place, find_place, sizes

__all__ = ["HELD", "STEPS", "WHOLE", "expectations", "gap"]

WHOLE = "recipe"
HELD = 0.01
"""How far the largest batch may be behind the smallest: a point, more than the paper's 0.14 of ImageNet."""

STEPS = (
    ("no_scaling", "Without linear scaling the largest batch does worse."),
    ("no_warm_up", "Without warm-up the largest batch does worse."),
    ("no_zero_gamma", "Without zero-initialised γ the largest batch does worse."),
    ("decayed_norms", "With weight decay on normalizations and biases the largest batch does worse."),
    ("whole_statistics", "With statistics of the whole batch the largest batch does worse."),
    ("plain", "Without any of the steps the largest batch does worse."),
)


def expectations(record: Record, found: Sequence[Place]) -> tuple[Expectation, ...]:
    """Judge the whole recipe, then each step of it: met where the seeds' ranges are apart.

    Where the whole recipe is at chance there is nothing that a step could hold up.
    """
    places, batches, chance = list(found), sizes(record), chance_of(record)
    small, large = (_whole(places, batch) for batch in (batches[0], batches[-1]))
    steps = (*(_worse(places, variant, claim, batches[-1]) for variant, claim in STEPS), _no_worse(places, batches[-1]))
    return (
        unless_guessing(_held(places, batches), chance, small),
        *(unless_guessing(item, chance, large) for item in steps),
    )


def _whole(found: list[Place], batch_size: int) -> dict[str, Spread | None]:
    place = find_place(found, WHOLE, batch_size)
    return {f"the whole recipe at batch {batch_size:,}": place.accuracy if place else None}


def _held(found: list[Place], batches: Sequence[int]) -> Expectation:
    claim = f"With the whole recipe {batches[-1]:,} images a step reach what {batches[0]:,} do, within {points(HELD)}."
    small, large = (find_place(found, WHOLE, size) for size in (batches[0], batches[-1]))
    if len(batches) < 2:
        return Expectation(claim=claim, verdict="not measured", measured="There is one batch size.")
    if small is None or large is None or not (small.accuracy and large.accuracy):
        absent = batches[0] if small is None else batches[-1]
        return Expectation(claim=claim, verdict="not measured", measured=_why_absent(found, WHOLE, absent))
    lost = gap(small, large)
    return Expectation(
        claim=claim,
        verdict="met" if lost <= HELD else "not met",
        measured=f"{percent(large.accuracy.mean)} against {percent(small.accuracy.mean)}: {points(lost)} "
        f"{'behind' if lost > 0 else 'ahead'}.",
    )


def _worse(found: list[Place], variant: str, claim: str, batch_size: int) -> Expectation:
    whole, without = (find_place(found, name, batch_size) for name in (WHOLE, variant))
    lost = next((one for one in found if (one.variant, one.batch_size) == (variant, batch_size)), None)
    if whole and lost and not lost.accuracy and lost.exploded_at_step and not lost.waiting:
        return Expectation(claim=claim, verdict="met", measured="Its loss was no longer finite.")
    if whole is None or without is None:
        missing = variant if whole else WHOLE
        return Expectation(claim=claim, verdict="not measured", measured=_why_absent(found, missing, batch_size))
    apart = are_apart(whole.accuracy, without.accuracy)
    verdict: Verdict = "met" if apart and gap(whole, without) > 0 else "not met"
    return Expectation(claim=claim, verdict=verdict, measured=_measured(whole, without, apart=apart))


def _no_worse(found: list[Place], batch_size: int) -> Expectation:
    claim = "Freezing the statistics in the last epochs does no harm at the largest batch."
    whole, frozen = (find_place(found, name, batch_size) for name in (WHOLE, "frozen_end"))
    if whole is None or frozen is None:
        missing = "frozen_end" if whole else WHOLE
        return Expectation(claim=claim, verdict="not measured", measured=_why_absent(found, missing, batch_size))
    apart = are_apart(whole.accuracy, frozen.accuracy)
    verdict: Verdict = "not met" if apart and gap(whole, frozen) > 0 else "met"
    return Expectation(claim=claim, verdict=verdict, measured=_measured(whole, frozen, apart=apart))


def gap(one: Place, other: Place) -> float:
    """Say by how much one place's accuracy is above another's."""
    assert one.accuracy is not None and other.accuracy is not None
    return one.accuracy.mean - other.accuracy.mean


def _measured(whole: Place, other: Place, *, apart: bool) -> str:
    assert whole.accuracy is not None and other.accuracy is not None
    lost, n = gap(whole, other), min(whole.accuracy.n, other.accuracy.n)
    less = "less" if lost > 0 else "more"
    overlap = "" if apart or n < 2 else "; the seeds' ranges overlap"
    return (
        f"{find_recipe(other.variant).summary.capitalize()}: {percent(other.accuracy.mean)} against "
        f"{percent(whole.accuracy.mean)} with the whole recipe, {points(lost)} {less}{overlap}."
    )


def _why_absent(found: list[Place], variant: str, batch_size: int) -> str:
    place = next((one for one in found if (one.variant, one.batch_size) == (variant, batch_size)), None)
    if place is None or not place.seeds:
        return f"{variant} was not trained."
    if place.waiting:
        return f"{variant} has not ended."
    return f"The loss of {variant} was no longer finite at batch {batch_size:,}."

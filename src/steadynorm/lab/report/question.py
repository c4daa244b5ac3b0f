"""Questions of two arms: in what batch norm is expected to differ from no normalization, and whether it does.

And of all verdicts: none rests on networks that may be guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from steadynorm.lab.analysis import Spread, are_apart
from steadynorm.lab.chance import Chance
from steadynorm.lab.report.document import Expectation
from steadynorm.lab.report.quantities import percent
from steadynorm.lab.report.wording import batch_arm, capital, listing, plain_arm

__all__ = ["Question", "is_guessing", "judge", "pair", "unless_guessing"]


class HasArm(Protocol):
    """What is known of an arm."""

    @property
    def arm(self) -> str:
        """Its name."""


Arm = TypeVar("Arm", bound=HasArm)


@dataclass(frozen=True, kw_only=True)
class Question(Generic[Arm]):
    """A quantity in which batch norm is expected to differ from no normalization."""

    claim: str
    what: str
    value: Callable[[Arm], Spread | None]
    shown: Callable[[float], str]
    batch_is_higher: bool = False


def pair(arms: Iterable[Arm]) -> tuple[Arm | None, Arm | None]:
    """Find batch norm and no normalization among the arms."""
    named = {arm.arm: arm for arm in arms}
    return named.get(batch_arm(named) or ""), named.get(plain_arm(named) or "")


def judge(
    question: Question[Arm], batch: Arm | None, plain: Arm | None, *, why_absent: Callable[[Arm | None], str]
) -> Expectation:
    """Judge one: met where the means differ as expected and the ranges of the seeds do not overlap.

    Args:
        question: what is asked.
        batch: batch norm, if it was trained.
        plain: no normalization, if it was trained.
        why_absent: says, in a sentence, why an arm has no such quantity.
    """
    with_norm, without = (question.value(arm) if arm else None for arm in (batch, plain))
    if with_norm is None or without is None:
        missing = plain if with_norm else batch
        return Expectation(claim=question.claim, verdict="not measured", measured=why_absent(missing))
    ahead = with_norm.mean > without.mean if question.batch_is_higher else with_norm.mean < without.mean
    apart = are_apart(with_norm, without)
    overlap = "" if apart or with_norm.n < 2 else "; the seeds' ranges overlap"
    return Expectation(
        claim=question.claim,
        verdict="met" if ahead and apart else "not met",
        measured=f"{capital(question.what)}: {question.shown(with_norm.mean)} with batch norm, "
        f"{question.shown(without.mean)} without{overlap}.",
    )


def is_guessing(accuracy: Spread | None, chance: Chance) -> bool:
    """Whether one of the seeds' networks is not surely better than guessing; False where there are none."""
    return accuracy is not None and not chance.is_beaten(accuracy.low)


def unless_guessing(item: Expectation, chance: Chance, networks: Mapping[str, Spread | None]) -> Expectation:
    """Take a verdict back where it rests on a network that may be guessing.

    Args:
        item: judged.
        chance: accuracy of guessing.
        networks: name -> accuracy over the seeds, of those that have to have learned something; None is passed over.
    """
    guessing = {name: one for name, one in networks.items() if one and is_guessing(one, chance)}
    if not guessing or item.verdict == "not measured":
        return item
    found = listing([f"{name} at {percent(one.low)}" for name, one in guessing.items()])
    measured = f"{capital(found)}, not surely above the {percent(chance.share)} of guessing. {item.measured}"
    return replace(item, verdict="not measured: at chance", measured=measured)

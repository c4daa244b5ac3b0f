"""Questions of two arms: in what batch norm is expected to differ from no normalization, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from steadynorm.lab.analysis import Spread, are_apart
from steadynorm.lab.report.document import Expectation
from steadynorm.lab.report.wording import batch_arm, capital, plain_arm

__all__ = ["Question", "judge", "pair"]


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

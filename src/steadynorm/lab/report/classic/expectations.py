"""What the paper's first figure lets expect, held against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steadynorm.lab.analysis import Spread, are_apart
from steadynorm.lab.report.classic.summary import ArmSummary
from steadynorm.lab.report.document import Expectation
from steadynorm.lab.report.quantities import number, percent
from steadynorm.lab.report.wording import batch_arm, capital, plain_arm

__all__ = ["expectations", "pair", "steps"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A quantity in which batch norm is expected to differ from no normalization."""

    claim: str
    what: str
    value: Callable[[ArmSummary], Spread | None]
    shown: Callable[[float], str]
    batch_is_higher: bool = False


def steps(value: float) -> str:
    """Write a number of steps."""
    return f"{value:,.0f}"


QUESTIONS = (
    Question(
        claim="Batch norm ends with the higher test accuracy.",
        what="after the last step",
        value=lambda arm: arm.test_accuracy,
        shown=percent,
        batch_is_higher=True,
    ),
    Question(
        claim="Batch norm is sooner at the accuracy that both reach.",
        what="first measured step there",
        value=lambda arm: arm.steps_to_common,
        shown=steps,
    ),
    Question(
        claim="What reaches a sigmoid keeps its place better with batch norm.",
        what="farthest that its median was from where it ended, in final widths, of the middle sigmoid",
        value=lambda arm: arm.drift,
        shown=number,
    ),
    Question(
        claim="What reaches a sigmoid keeps its width better with batch norm.",
        what="largest over smallest width, of the middle sigmoid",
        value=lambda arm: arm.width_ratio,
        shown=number,
    ),
)


def pair(arms: Sequence[ArmSummary]) -> tuple[ArmSummary | None, ArmSummary | None]:
    """Find batch norm and no normalization among the arms."""
    names = [arm.arm for arm in arms]
    wanted = (batch_arm(names), plain_arm(names))
    batch, plain = (next((arm for arm in arms if arm.arm == name), None) for name in wanted)
    return batch, plain


def expectations(arms: Sequence[ArmSummary]) -> tuple[Expectation, ...]:
    """Judge each: met where the means differ as expected and the ranges of the seeds do not overlap."""
    batch, plain = pair(arms)
    return tuple(_judge(batch, plain, question) for question in QUESTIONS)


def _judge(batch: ArmSummary | None, plain: ArmSummary | None, question: Question) -> Expectation:
    found, other = (question.value(arm) if arm else None for arm in (batch, plain))
    if found is None or other is None:
        missing = plain if found else batch
        return Expectation(claim=question.claim, verdict="not measured", measured=_why_absent(missing))
    ahead = found.mean > other.mean if question.batch_is_higher else found.mean < other.mean
    apart = are_apart(found, other)
    overlap = "" if apart or found.n < 2 else "; the seeds' ranges overlap"
    return Expectation(
        claim=question.claim,
        verdict="met" if ahead and apart else "not met",
        measured=f"{capital(question.what)}: {question.shown(found.mean)} with batch norm, "
        f"{question.shown(other.mean)} without{overlap}.",
    )


def _why_absent(arm: ArmSummary | None) -> str:
    if arm is None:
        return "The arm was not trained."
    if arm.diverged_at_step:
        return f"The loss was not finite at step {steps(arm.diverged_at_step[0])}."
    return f"{arm.measured} of {arm.seeds} seeds are measured, in both arms together too few."

"""What the paper's first figure lets expect, held against what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.chance import Chance
from steadynorm.lab.report.classic.summary import ArmSummary
from steadynorm.lab.report.document import Expectation
from steadynorm.lab.report.quantities import number, percent
from steadynorm.lab.report.question import Question, judge, pair, unless_guessing
from steadynorm.lab.report.wording import arm_label

__all__ = ["expectations", "steps"]


def steps(value: float) -> str:
    """Write a number of steps."""
    return f"{value:,.0f}"


QUESTIONS = (
    Question[ArmSummary](
        claim="Batch norm ends with the higher test accuracy.",
        what="after the last step",
        value=lambda arm: arm.test_accuracy,
        shown=percent,
        batch_is_higher=True,
    ),
    Question[ArmSummary](
        claim="Batch norm is sooner at the accuracy that both reach.",
        what="first measured step there",
        value=lambda arm: arm.steps_to_common,
        shown=steps,
    ),
    Question[ArmSummary](
        claim="What reaches a sigmoid keeps its place better with batch norm.",
        what="farthest that its median was from where it ended, in final widths, of the middle sigmoid",
        value=lambda arm: arm.drift,
        shown=number,
    ),
    Question[ArmSummary](
        claim="What reaches a sigmoid keeps its width better with batch norm.",
        what="largest over smallest width, of the middle sigmoid",
        value=lambda arm: arm.width_ratio,
        shown=number,
    ),
)


def expectations(arms: Sequence[ArmSummary], chance: Chance) -> tuple[Expectation, ...]:
    """Judge each, where both arms have learned something."""
    batch, plain = pair(arms)
    networks = {arm_label(arm.arm): arm.test_accuracy for arm in (batch, plain) if arm}
    judged = (judge(question, batch, plain, why_absent=_why_absent) for question in QUESTIONS)
    return tuple(unless_guessing(item, chance, networks) for item in judged)


def _why_absent(arm: ArmSummary | None) -> str:
    if arm is None:
        return "The arm was not trained."
    if arm.diverged_at_step:
        return f"The loss was not finite at step {steps(arm.diverged_at_step[0])}."
    return f"{arm.measured} of {arm.seeds} seeds are measured, in both arms together too few."

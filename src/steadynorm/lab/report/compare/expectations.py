"""The article's expectations, each held against what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.analysis import Spread
from steadynorm.lab.chance import chance_of
from steadynorm.lab.records import Record
from steadynorm.lab.report.compare.summary import ARTICLE_EPOCH, ArmSummary, early_epoch
from steadynorm.lab.report.document import Expectation, Verdict
from steadynorm.lab.report.quantities import number, percent, points
from steadynorm.lab.report.question import Question, judge, pair, unless_guessing
from steadynorm.lab.report.wording import arm_label, capital, epochs_label, listing

__all__ = ["deviations", "expectations", "trained"]

WITH_BATCH_NORM = 0.75
WITHOUT = 0.60
TOLERANCE = 0.03
"""How far from the article's number still counts as "about": three points."""

ARTICLE = {
    "batch_size": 128,
    "accumulate": 1,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "epochs": 20,
    "milestones": [10, 15],
}


STEADINESS = Question[ArmSummary](
    claim="Without normalization validation accuracy is the less steady one.",
    what="worst fall from one epoch to the next before the rate is first lowered",
    value=lambda arm: arm.largest_fall,
    shown=points,
)
"""Where one arm alone diverged, that settles it."""

QUESTIONS = (
    STEADINESS,
    Question[ArmSummary](
        claim="Gradient norms are lower with batch norm.",
        what="mean over the epochs",
        value=lambda arm: arm.grad_norm,
        shown=number,
    ),
    Question[ArmSummary](
        claim="Gradient norms are steadier with batch norm.",
        what="95th over 5th percentile within an epoch",
        value=lambda arm: arm.grad_norm_ratio,
        shown=number,
    ),
)


def expectations(record: Record, arms: Sequence[ArmSummary]) -> tuple[Expectation, ...]:
    """Judge the article's expectations at its learning rate.

    On CIFAR-10 the numbers themselves are judged; on other data only their direction.

    Args:
        record: the experiment.
        arms: its summaries at the shared rate.
    """
    batch, plain = pair(arms)
    judged = _judged(record, batch, plain)
    chance, networks = chance_of(record), {arm_label(arm.arm): trained(arm) for arm in (batch, plain) if arm}
    return tuple(unless_guessing(item, chance, networks) for item in judged)


def trained(arm: ArmSummary) -> Spread | None:
    """Give the accuracy by which an arm has learned something or not: after the last epochs, where it has not diverged.

    An arm that diverged is judged by that.
    """
    return None if _is_lost(arm) else arm.val_accuracy or arm.val_accuracy_reached


def _judged(record: Record, batch: ArmSummary | None, plain: ArmSummary | None) -> tuple[Expectation, ...]:
    epoch = early_epoch(record)
    if record.config["data"] == "cifar10":
        accuracy: tuple[Expectation, ...] = (
            _near(batch, "Batch norm is at about", WITH_BATCH_NORM, epoch, more_is_fine=True),
            _near(plain, "Without normalization accuracy is near", WITHOUT, epoch, more_is_fine=False),
        )
    else:
        accuracy = (_ahead(batch, plain, epoch),)
    return (*accuracy, *(_over_epochs(batch, plain, question) for question in QUESTIONS))


def deviations(record: Record) -> tuple[str, ...]:
    """Where the configuration leaves the article's, as phrases."""
    return tuple(
        f"{key.replace('_', ' ')} {_value(record.config.get(key, value))} instead of {_value(value)}"
        for key, value in ARTICLE.items()
        if record.config.get(key, value) != value
    )


def _near(arm: ArmSummary | None, start: str, target: float, epoch: int, *, more_is_fine: bool) -> Expectation:
    claim = f"{start} {percent(target, digits=0)} by epoch {ARTICLE_EPOCH}."
    reached = arm.val_accuracy_early if arm and epoch == ARTICLE_EPOCH else None
    if arm is not None and reached is None and _is_lost(arm):
        return Expectation(claim=claim, verdict="not met", measured=_why_absent(arm))
    if reached is None:
        return Expectation(claim=claim, verdict="not measured", measured=_why_absent(arm))
    excess = reached.mean - target
    met = excess >= -TOLERANCE and (more_is_fine or excess <= TOLERANCE)
    where = f"{points(excess)} {'above' if excess > 0 else 'below'} the article's figure"
    seeds = (
        f" (mean of {reached.n} seeds, from {percent(reached.low)} to {percent(reached.high)})" if reached.n > 1 else ""
    )
    return Expectation(
        claim=claim,
        verdict="met" if met else "not met",
        measured=f"{percent(reached.mean)} at epoch {epoch}{seeds}, {where}.",
    )


def _ahead(batch: ArmSummary | None, plain: ArmSummary | None, epoch: int) -> Expectation:
    question = Question[ArmSummary](
        claim=f"Batch norm is ahead at epoch {epoch}.",
        what="validation accuracy",
        value=lambda arm: arm.val_accuracy_early,
        shown=percent,
        batch_is_higher=True,
    )
    return judge(question, batch, plain, why_absent=_why_absent)


def _over_epochs(batch: ArmSummary | None, plain: ArmSummary | None, question: Question[ArmSummary]) -> Expectation:
    """Compare what is taken over the epochs, where both arms have the same number of them."""
    lost = [arm for arm in (batch, plain) if arm and _is_lost(arm)]
    if question is STEADINESS and batch and plain and len(lost) == 1:
        verdict: Verdict = "met" if lost == [plain] else "not met"
        return Expectation(claim=question.claim, verdict=verdict, measured=_diverged_alone(lost[0]))
    if batch and plain and batch.reached_epoch != plain.reached_epoch:
        measured = (
            f"{epochs_label(batch.reached_epoch)} with batch norm and {plain.reached_epoch} without cannot be compared."
        )
        return Expectation(claim=question.claim, verdict="not measured", measured=measured)
    return judge(question, batch, plain, why_absent=_why_absent)


def _is_lost(arm: ArmSummary) -> bool:
    return 0 < arm.seeds == arm.diverged


def _diverged_alone(arm: ArmSummary) -> str:
    return f"{capital(arm_label(arm.arm))}: {_why_absent(arm)[:1].lower()}{_why_absent(arm)[1:]}"


def _why_absent(arm: ArmSummary | None) -> str:
    if arm is None:
        return "The arm was not trained."
    if _is_lost(arm):
        return f"Every run diverged, at step {listing([f'{step:,}' for step in arm.diverged_at_step])}."
    return f"The runs have {epochs_label(arm.reached_epoch)}."


def _value(value: object) -> str:
    return listing([str(item) for item in value]) if isinstance(value, list) else f"{value:g}"

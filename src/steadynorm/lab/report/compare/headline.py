"""The finding in one sentence, made from the measured numbers, and one more that puts it in place."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.analysis import are_apart
from steadynorm.lab.chance import chance_of
from steadynorm.lab.records import Record
from steadynorm.lab.report.compare.summary import ArmSummary, is_finished
from steadynorm.lab.report.quantities import percent, points, rate
from steadynorm.lab.report.question import is_guessing
from steadynorm.lab.report.wording import (
    arm_label,
    batch_arm,
    batches_label,
    capital,
    data_label,
    epochs_label,
    listing,
    plain_arm,
    seeds_label,
)

__all__ = ["headline", "setting"]


def headline(record: Record, arms: Sequence[ArmSummary]) -> str:
    """Say what the picture at the shared rate shows.

    Args:
        record: the experiment.
        arms: its summaries at the shared rate.

    Returns:
        one sentence without a full stop.
    """
    measured = [arm for arm in arms if arm.val_accuracy is not None]
    failed = [arm for arm in arms if arm.seeds and arm.diverged == arm.seeds]
    if not measured:
        return _nothing_to_compare(record, arms, failed)
    best, *others = _ranked(measured)
    score = percent(_mean(best))
    where = f"At rate {rate(record.config['lr'])}"
    claim = f"{where} {arm_label(best.arm)} reaches {score} on {data_label(record)}"
    if is_guessing(best.val_accuracy, chance_of(record)):
        return f"{where} no network is surely better than guessing; the best, {arm_label(best.arm)}, reaches {score}"
    if failed:
        return f"{claim}; {listing([arm_label(arm.arm) for arm in failed])} {_diverges(failed)}"
    if not others:
        return claim
    other = others[0]
    gap = _mean(best) - _mean(other)
    if is_guessing(other.val_accuracy, chance_of(record)):
        return f"{claim}; {arm_label(other.arm)} is at chance: {percent(_mean(other))}"
    if not are_apart(best.val_accuracy, other.val_accuracy):
        both = f"{capital(arm_label(best.arm))} and {arm_label(other.arm)}"
        return f"{both} end within their seeds' range of each other: {score} and {percent(_mean(other))}"
    return f"{claim}, {arm_label(other.arm)} {percent(_mean(other))}: {points(gap)} apart"


def setting(record: Record, arms: Sequence[ArmSummary]) -> str:
    """Say on what the headline rests: network, epochs, rate, seeds, and whether it is complete."""
    config = record.config
    seeds = max((arm.seeds for arm in arms), default=0)
    count = seeds_label(seeds)
    lost = [
        f"{arm.diverged} of {arm.seeds} runs with {arm_label(arm.arm)}" for arm in arms if 0 < arm.diverged < arm.seeds
    ]
    return (
        f"The same network ({config['network']}) in {len(arms)} variants that differ in normalization alone, "
        f"trained for {epochs_label(config['epochs'])} on {data_label(record)} with learning rate {rate(config['lr'])} "
        f"and {batches_label(record)}; {count}."
    ) + (f" Diverged, and left out of final means: {listing(lost)}." if lost else "")


def _nothing_to_compare(record: Record, arms: Sequence[ArmSummary], failed: Sequence[ArmSummary]) -> str:
    if arms and len(failed) == len(arms):
        return f"Every network diverged at learning rate {rate(record.config['lr'])}"
    if is_finished(record):
        return "No network ended with a validation accuracy"
    reached = max((arm.reached_epoch for arm in arms), default=0)
    return f"No network has finished yet: epoch {reached} of {record.config['epochs']}"


def _ranked(arms: Sequence[ArmSummary]) -> list[ArmSummary]:
    """Best first; of the others, the pair the article compares comes next if the best is one of it."""
    ranked = sorted(arms, key=_mean, reverse=True)
    names = [arm.arm for arm in ranked]
    pair = {batch_arm(names), plain_arm(names)}
    if ranked[0].arm in pair:
        ranked[1:] = sorted(ranked[1:], key=lambda arm: arm.arm not in pair)
    return ranked


def _mean(arm: ArmSummary) -> float:
    assert arm.val_accuracy is not None
    return arm.val_accuracy.mean


def _diverges(arms: Sequence[ArmSummary]) -> str:
    return "diverges" if len(arms) == 1 else "diverge"

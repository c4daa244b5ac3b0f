"""The sentences of a comparison: made from measured numbers, and the same on the page and in the notebook."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.analysis import are_apart
from steadynorm.lab.records import Record
from steadynorm.lab.report.compare.expectations import TOLERANCE, WITH_BATCH_NORM, WITHOUT, deviations
from steadynorm.lab.report.compare.summary import ArmSummary, early_epoch
from steadynorm.lab.report.quantities import number, percent, points, rate, seconds
from steadynorm.lab.report.wording import (
    PLAIN,
    arm_label,
    batch_arm,
    capital,
    data_label,
    epochs_label,
    listing,
)

__all__ = ["expected_from", "tuning_note", "writeup"]

MANY = 3


def writeup(record: Record, arms: Sequence[ArmSummary]) -> tuple[str, ...]:
    """Write a paragraph for each arm, best first, and one on what the seeds allow to say.

    Of many arms the best and the article's two are told; the table has them all.
    """
    measured = [arm for arm in arms if arm.val_accuracy_reached is not None]
    ranked = sorted(measured, key=lambda arm: arm.val_accuracy.mean if arm.val_accuracy else -1.0, reverse=True)
    pair = (batch_arm([arm.arm for arm in arms]), PLAIN)
    told = ranked if len(ranked) <= MANY else [arm for arm in ranked if arm is ranked[0] or arm.arm in pair]
    paragraphs = [_about(record, arm) for arm in told]
    paragraphs += [_never_started(arm) for arm in arms if arm.val_accuracy_reached is None and arm.diverged]
    return (*paragraphs, *_confidence(ranked))


def expected_from(record: Record) -> str:
    """Say whose expectations these are, and how far this run may be held against them."""
    tolerance = f'"About" and "near" allow {points(TOLERANCE, digits=0)}.'
    if record.config["data"] != "cifar10":
        return (
            f"The article's figures are for CIFAR-10: about {percent(WITH_BATCH_NORM, digits=0)} by epoch 10 "
            f"with batch norm, near {percent(WITHOUT, digits=0)} without. On {data_label(record)} only the "
            "direction can be compared."
        )
    changed = deviations(record)
    if not changed:
        return f"The article's expectations, at its own settings. {tolerance}"
    differs = f"though this run differs from its settings: {listing(changed)}"
    return f"The article's expectations, {differs}. {tolerance}"


def tuning_note(record: Record, tuned: Sequence[ArmSummary]) -> str:
    """Say how rates were chosen and what became of the comparison."""
    how = (
        f"One rate for all may suit one arm better than another. Rates {listing(_rates(record))} were tried "
        "with short runs judged on training images kept aside; then each arm was trained at its best one."
    )
    measured = [arm for arm in tuned if arm.val_accuracy is not None]
    if not tuned:
        return f"{how} The choice is not complete yet."
    if len(measured) < 2:
        return how
    best, other, *_ = sorted(measured, key=lambda arm: -arm.val_accuracy.mean if arm.val_accuracy else 0.0)
    assert best.val_accuracy is not None and other.val_accuracy is not None
    gap = best.val_accuracy.mean - other.val_accuracy.mean
    overlap = "" if are_apart(best.val_accuracy, other.val_accuracy) else ", within the range of their seeds"
    return (
        f"{how} There {arm_label(best.arm)} (rate {rate(best.lr)}) ends at {percent(best.val_accuracy.mean)} "
        f"and {arm_label(other.arm)} (rate {rate(other.lr)}) at {percent(other.val_accuracy.mean)}: "
        f"{points(gap)} apart{overlap}."
    )


def _about(record: Record, arm: ArmSummary) -> str:
    name = capital(arm_label(arm.arm))
    early, final = arm.val_accuracy_early, arm.val_accuracy
    parts = []
    if final is not None:
        start = f"{percent(early.mean)} at epoch {early_epoch(record)} and " if early else ""
        parts.append(f"{name}: {start}{percent(final.mean)} after {epochs_label(record.config['epochs'])}")
        parts[0] += f", highest at epoch {arm.best_epoch}." if arm.best_epoch != arm.reached_epoch else "."
    elif arm.val_accuracy_reached is not None:
        parts.append(f"{name}: {percent(arm.val_accuracy_reached.mean)} at epoch {arm.reached_epoch}.")
    if arm.diverged:
        steps = listing([f"{step:,}" for step in arm.diverged_at_step])
        who = "Its run" if arm.seeds == 1 else f"{arm.diverged} of {arm.seeds} runs"
        parts.append(f"{who} diverged{f' at step {steps}' if steps else ''}.")
    if arm.grad_norm and arm.grad_norm_ratio:
        parts.append(
            f"Its gradient norm averages {number(arm.grad_norm.mean)}, and within an epoch its 95th "
            f"percentile is {number(arm.grad_norm_ratio.mean)} times its 5th."
        )
    if arm.seconds_per_epoch is not None:
        parts.append(f"An epoch takes {seconds(arm.seconds_per_epoch)}.")
    return " ".join(parts)


def _never_started(arm: ArmSummary) -> str:
    return f"{capital(arm_label(arm.arm))}: diverged before the first epoch ended."


def _confidence(arms: Sequence[ArmSummary]) -> tuple[str, ...]:
    seeds = {arm.val_accuracy.n for arm in arms if arm.val_accuracy}
    if not seeds:
        return ()
    if max(seeds) == 1:
        return ("There is one seed for each arm: another would move these numbers by an unknown amount.",)
    return ("Spreads are the standard deviation over seeds; notes give their range.",)


def _rates(record: Record) -> list[str]:
    return [rate(float(lr)) for lr in record.config["tune_lr"]]

"""The finding in one sentence, made from the measured numbers, and one more that puts it in place."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.analysis import are_apart
from steadynorm.lab.chance import chance_of
from steadynorm.lab.records import Record
from steadynorm.lab.report.classic.expectations import steps
from steadynorm.lab.report.classic.summary import ArmSummary
from steadynorm.lab.report.quantities import percent, points, rate
from steadynorm.lab.report.question import is_guessing, pair
from steadynorm.lab.report.wording import arm_label, data_label, listing, seeds_label

__all__ = ["headline", "setting"]


def headline(record: Record, arms: Sequence[ArmSummary]) -> str:
    """Say how the arms end and, where one is, who is first at what both reach; without a full stop."""
    batch, plain = pair(arms)
    known = [arm for arm in arms if arm.test_accuracy]
    if not known:
        diverged = [arm_label(arm.arm) for arm in arms if arm.diverged_at_step]
        return f"No network ended with a finite loss: {listing(diverged)}" if diverged else "Nothing is measured yet"
    if batch is None or plain is None or batch.test_accuracy is None or plain.test_accuracy is None:
        scores = [f"{arm_label(arm.arm)} at {percent(arm.test_accuracy.mean)}" for arm in known if arm.test_accuracy]
        return f"The sigmoid network ends with {listing(scores)} test accuracy on {data_label(record)}"
    if is_guessing(batch.test_accuracy, chance_of(record)) and is_guessing(plain.test_accuracy, chance_of(record)):
        both = f"{percent(batch.test_accuracy.mean)} with batch norm, {percent(plain.test_accuracy.mean)} without"
        return f"Neither sigmoid network is surely better than guessing: {both}"
    return f"{_ends(record, batch, plain)}{_speed(batch, plain)}"


def setting(record: Record, arms: Sequence[ArmSummary]) -> str:
    """Say on what the headline rests: network, steps, rate, seeds, and which runs are not in it."""
    config, seeds = record.config, len(record.config["seeds"])
    widths = listing([str(width) for width in config["widths"]])
    count = seeds_label(seeds)
    lost = [f"{len(arm.diverged_at_step)} with {arm_label(arm.arm)}" for arm in arms if arm.diverged_at_step]
    return (
        f"Hidden layers of {widths} sigmoids, trained for {steps(config['steps'])} steps on {config['batch_size']} "
        f"binary images of {data_label(record)} at learning rate {rate(config['lr'])}; {len(arms)} variants that "
        f"differ in normalization alone; {count}."
    ) + (f" Runs whose loss was not finite, left out of all means: {listing(lost)}." if lost else "")


def _ends(record: Record, batch: ArmSummary, plain: ArmSummary) -> str:
    assert batch.test_accuracy
    assert plain.test_accuracy
    ours, theirs = batch.test_accuracy.mean, plain.test_accuracy.mean
    where = f"test accuracy on {data_label(record)}"
    if not are_apart(batch.test_accuracy, plain.test_accuracy):
        scores = f"{percent(ours)} and {percent(theirs)}"
        return f"With batch norm and without, the sigmoid network ends alike: {scores} {where}"
    best, gap = percent(max(ours, theirs)), points(ours - theirs)
    if ours > theirs:
        return f"With batch norm the sigmoid network ends at {best} {where}, {gap} higher than without"
    return f"Without batch norm the sigmoid network ends at {best} {where}, {gap} higher than with it"


def _speed(batch: ArmSummary, plain: ArmSummary) -> str:
    """Say who is first at what both reach, where one is."""
    if not are_apart(batch.steps_to_common, plain.steps_to_common):
        return ""
    assert batch.steps_to_common
    assert plain.steps_to_common
    ours, theirs = steps(batch.steps_to_common.mean), steps(plain.steps_to_common.mean)
    return f"; the common level takes {ours} steps with it, {theirs} without"

"""What the report of the loss around the weights says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from steadynorm.lab.analysis import Spread
from steadynorm.lab.chance import chance_of
from steadynorm.lab.noisy_batch_norm import LARGEST_SCALING, LARGEST_SHIFT, NOISY
from steadynorm.lab.records import Record
from steadynorm.lab.report.document import Block, Expectations, Figures, Report, Section, Text, all_measured, expected
from steadynorm.lab.report.figure import Drawing
from steadynorm.lab.report.landscape.courses import ArmCourses, courses
from steadynorm.lab.report.landscape.expectations import expectations, measured_pair, times
from steadynorm.lab.report.landscape.figures import draw_all
from steadynorm.lab.report.landscape.measures import QUANTITIES, Quantity, find_quantity, over_looks, ratio
from steadynorm.lab.report.landscape.tables import (
    IN_RATES,
    IN_WEIGHTS,
    SCALES,
    quantity_table,
    short_table,
    training_table,
)
from steadynorm.lab.report.method import class_count, data_method, training_method
from steadynorm.lab.report.quantities import percent, rate
from steadynorm.lab.report.wording import (
    arm_label,
    batches_label,
    capital,
    data_label,
    epochs_label,
    listing,
    seeds_label,
)

__all__ = ["make_report"]

PAPERS = (
    "The claims are those of Santurkar et al. 2018 (arXiv 1805.11604) on a VGG network, and of Bjorck et al. 2018 "
    "(arXiv 1806.02375) on gradients. Each is judged by the median over all looks, as the ratio of no normalization to "
    "batch norm, seed by seed. Those on steps in proportion to the weights, and on how often a step raises the loss, "
    "are not theirs."
)
HARDLY_LEARNED = 0.95
"""A training loss that is a larger share than this of that of guessing has hardly moved."""
FALL_OR_RISE = (
    "The range of the loss, which the paper shows, counts a fall as much as a rise: a network that learns faster has "
    "the larger one for that alone. How often the longest step raises the loss tells the two apart."
)
SCALE_IS_FREE = (
    "Weights in front of a normalization can be multiplied by any c > 0 without changing what the network computes: "
    "its gradient is then divided by c and its β by c². Steps in learning rates, as the papers measure, see that; "
    "steps that are a share of the weights' norm do not, nor does β times its square. Only a difference that shows in "
    "both is one of shape. The last layer's weights and the parameters of the normalizations have no such freedom, so "
    "the second view is close to free of scale, not exactly."
)


def make_report(record: Record) -> Report:
    """Say what looking around found."""
    arms = courses(record)
    drawings, is_begun = draw_all(record, arms), any(arm.courses for arm in arms)
    judged = (Text(PAPERS), Expectations(expectations(arms, chance_of(record)))) if is_begun else ()
    sections = (
        Section(key="result", title="Result", blocks=_result(record, arms)),
        expected(*judged),
        Section(
            key="rates",
            title="In learning rates, as the paper measures",
            short="In learning rates",
            blocks=_measured(record, arms, IN_RATES, drawings["rate"]),
        ),
        Section(
            key="weights",
            title="In proportion to the weights",
            short="In proportion",
            blocks=_measured(record, arms, IN_WEIGHTS, drawings["weights"]),
        ),
        Section(
            key="scale",
            title="Scale of gradients and weights",
            short="Scale",
            blocks=_measured(record, arms, SCALES, drawings["scale"]),
        ),
        Section(key="training", title="Training", blocks=_figures(drawings["training"])),
    )
    return Report(
        headline=_headline(record, arms),
        lead=_lead(record, arms),
        table=short_table(arms),
        sections=sections,
        method=_method(record, arms),
        finished=all_measured(record),
        findings=_findings(arms),
    )


def _headline(record: Record, arms: Sequence[ArmCourses]) -> str:
    """Name the difference in both views; it is what the reader must not miss if they disagree."""
    batch, plain = measured_pair(arms)
    if batch is None or plain is None:
        measured = [arm_label(arm.arm) for arm in arms if arm.courses]
        return f"So far the loss around {listing(measured)} was seen" if measured else "Nothing is measured yet"
    seen, free = (ratio(plain, batch, find_quantity(key)) for key in ("smoothness", "free_smoothness"))
    if seen is None or free is None:
        return "The loss left the numbers along the gradient, and cannot be compared"
    first, second = (times(one, less="smaller", more="larger", same="as large") for one in (seen, free))
    return (
        f"β, how fast the gradient changes along itself, is {first} with batch norm, and {second} once the scale of "
        f"the weights is taken out{_plateau(record, arms)}"
    )


def _plateau(record: Record, arms: Sequence[ArmCourses]) -> str:
    """Say who is still about where guessing is, where every loss is flat."""
    guessing = HARDLY_LEARNED * math.log(class_count(record))
    stuck = [arm_label(arm.arm) for arm in arms if arm.train_loss and arm.train_loss.mean > guessing]
    return f"; but {listing(stuck)} {'has' if len(stuck) == 1 else 'have'} hardly learned anything" if stuck else ""


def _lead(record: Record, arms: Sequence[ArmCourses]) -> str:
    config, seeds = record.config, len(record.config["seeds"])
    count = seeds_label(seeds)
    return (
        f"The same network ({config['network']}) in {len(arms)} variants, looked around at every "
        f"{config['probe_every']} steps of {epochs_label(config['epochs'])} on {data_label(record)} with learning rate "
        f"{rate(config['lr'])} and {batches_label(record)}; {count}.{_lost(arms)}"
    )


def _lost(arms: Sequence[ArmCourses]) -> str:
    lost = [f"{len(arm.diverged)} of {len(arm.courses)} with {arm_label(arm.arm)}" for arm in arms if arm.diverged]
    return f" Diverged, and without a final accuracy: {listing(lost)}." if lost else ""


def _result(record: Record, arms: Sequence[ArmCourses]) -> tuple[Block, ...]:
    if not any(arm.courses for arm in arms):
        return ()
    return (training_table(record, arms), *(Text(line) for line in _writeup(arms)))


def _writeup(arms: Sequence[ArmCourses]) -> list[str]:
    """Say what batch norm changes in each of the two views, and why there are two."""
    batch, plain = measured_pair(arms)
    if batch is None or plain is None:
        return [SCALE_IS_FREE]
    views = (("steps of the learning rate", "", "β"), ("steps in proportion to the weights", "free_", "β ‖w‖²"))
    return [*(line for view in views for line in _view(batch, plain, *view)), FALL_OR_RISE, SCALE_IS_FREE]


def _view(batch: ArmCourses, plain: ArmCourses, steps: str, prefix: str, beta: str) -> list[str]:
    keys = ("loss_range", "gradient_change", "smoothness")
    found = [ratio(plain, batch, find_quantity(prefix + key)) for key in keys]
    rises = [over_looks(arm, find_quantity(f"{prefix}raised")) for arm in (batch, plain)]
    if not all(found) or not all(rises):
        return []
    loss, change, smoothness = (one for one in found if one)
    with_norm, without = (percent(one.mean, digits=0) for one in rises if one)
    smoother = times(smoothness, less="smaller", more="larger", same="as large")
    return [
        f"With batch norm, against no normalization, in {steps}: the gradient changes {times(change)}"
        f"{' of itself' if prefix else ''}, {beta} is {smoother}, the loss varies {times(loss)}, and the longest step "
        f"raises it at {with_norm} of the looks instead of {without}."
    ]


def _measured(
    record: Record, arms: Sequence[ArmCourses], quantities: Sequence[Quantity], drawings: Sequence[Drawing]
) -> tuple[Block, ...]:
    return (quantity_table(record, arms, quantities), *_figures(drawings)) if drawings else ()


def _figures(drawings: Sequence[Drawing]) -> tuple[Block, ...]:
    return (Figures(drawings),) if drawings else ()


def _method(record: Record, arms: Sequence[ArmCourses]) -> tuple[str, ...]:
    config = record.config
    rates, shares = (listing([f"{length:g}" for length in config[f"{unit}_steps"]]) for unit in ("rate", "weight"))
    noise = (
        f"{capital(arm_label(NOISY))} shifts every normalized channel by up to {LARGEST_SHIFT:g} standard deviations "
        f"and scales it by up to {percent(LARGEST_SCALING, digits=0)} up or down, at random and anew at every training "
        "step, the same for all images of the batch; a look has the noise of its step. In evaluation there is none."
    )
    return (
        f"{data_method(record)} A seed decides the initial weights and the order of the images, alike in every arm.",
        *training_method(record),
        f"At step 0 and every {config['probe_every']} steps the loss and its gradient g are taken on the step's own "
        f"batch, in training mode, at the weights x and at x - η g: with η of {rates} learning rates, and with "
        f"η ‖g‖ of {shares} times the norm ‖w‖ of convolutions and linear layers. It is done on copies, so that "
        "training ends with the same bits as without. The loss is the cross-entropy alone, without weight decay; steps "
        "follow the gradient alone, without momentum.",
        "The range of the loss is the largest less the smallest of the values at the ends of the steps; the change of "
        "the gradient is ‖g(x) - g(x - η g)‖, of which the largest counts; the effective smoothness β is the largest "
        "‖g(x) - g(x - η g)‖ / ‖η g‖. Tables give the median over a network's looks, then mean and range over the "
        "seeds.",
        *([noise] if NOISY in config["arms"] else []),
        *_rounding(arms),
    )


def _rounding(arms: Sequence[ArmCourses]) -> tuple[str, ...]:
    found = [(arm_label(arm.arm), over_looks(arm, find_quantity("rounding"))) for arm in arms]
    known = [f"{percent(one.mean)} with {name}" for name, one in found if one]
    if not known:
        return ()
    return (
        "Looks are in float32 although training is not: rounding to bfloat16 alone moves the gradient, by this much of "
        f"its norm at the median look: {listing(known)}.",
    )


def _findings(arms: Sequence[ArmCourses]) -> dict[str, Any]:
    batch, plain = measured_pair(arms)
    return {
        "arms": [
            {
                "arm": arm.arm,
                "seeds": [course.seed for course in arm.courses],
                "diverged_at_step": [course.diverged_at for course in arm.diverged],
                "val_accuracy": _spread(arm.val_accuracy),
                "train_loss": _spread(arm.train_loss),
                **{one.key: _spread(over_looks(arm, one)) for one in QUANTITIES},
            }
            for arm in arms
        ],
        "none_over_batch_norm": {
            one.key: _spread(ratio(plain, batch, one)) if batch and plain else None for one in QUANTITIES
        },
    }


def _spread(found: Spread | None) -> dict[str, Any] | None:
    return asdict(found) if found else None

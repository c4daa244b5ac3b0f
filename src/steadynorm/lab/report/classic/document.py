"""What the report of the sigmoid network says."""

from __future__ import annotations

from collections.abc import Sequence

from steadynorm.lab.chance import chance_of
from steadynorm.lab.records import Record
from steadynorm.lab.report.classic.expectations import expectations
from steadynorm.lab.report.classic.figures import draw_accuracy, draw_loss, draw_percentiles, draw_shifts
from steadynorm.lab.report.classic.headline import headline, setting
from steadynorm.lab.report.classic.summary import ArmSummary, findings, is_finished, summarise
from steadynorm.lab.report.classic.tables import full_table, short_table
from steadynorm.lab.report.document import Block, Expectations, Figures, Report, Section, Text, expected
from steadynorm.lab.report.figure import Drawing
from steadynorm.lab.report.quantities import number, rate
from steadynorm.lab.report.question import pair
from steadynorm.lab.report.wording import data_label

__all__ = ["make_report"]


def make_report(record: Record) -> Report:
    """Say what the sigmoid network showed."""
    arms = [summarise(record, str(arm)) for arm in record.config["arms"]]
    return Report(
        headline=headline(record, arms),
        lead=setting(record, arms),
        table=short_table(arms),
        sections=(
            Section(key="result", title="Result", blocks=(full_table(record, arms), Text(_reading(arms)))),
            expected(Text(EXPECTED), Expectations(expectations(arms, chance_of(record)))),
            Section(
                key="accuracy", title="Accuracy and loss", blocks=_figures(draw_accuracy(record), draw_loss(record))
            ),
            Section(
                key="inputs",
                title="What reaches a sigmoid",
                blocks=_figures(*draw_percentiles(record), draw_shifts(record)),
            ),
        ),
        method=_method(record),
        finished=is_finished(record),
        findings=findings(record, arms),
    )


EXPECTED = (
    "Ioffe & Szegedy 2015 (arXiv 1502.03167, figure 1), on MNIST: higher test accuracy with batch norm, and inputs of "
    "sigmoids whose distribution is much steadier. An expectation is met where the means differ as it says and the "
    "ranges of the seeds do not overlap."
)


def _reading(arms: Sequence[ArmSummary]) -> str:
    """Say how the table's shifts are to be read, and how they are in evaluation mode."""
    batch, plain = pair(arms)
    general = (
        "Drift is how far the median of what reaches a sigmoid was, at most, from where it ended, in units of the "
        "final distance from its 15th to its 85th percentile, the width; path is all that it moved from one "
        "measurement to the next; change of width is the largest over the smallest. Each is that of the middle one of "
        "the last hidden layer's sigmoids."
    )
    if not (batch and plain and batch.eval_drift and plain.eval_drift and batch.eval_width_ratio):
        return general
    return (
        f"{general} In evaluation mode, where running statistics begin as 0 and 1 whatever the network, batch norm's "
        f"drift is {number(batch.eval_drift.mean)} and its width changes by a factor of "
        f"{number(batch.eval_width_ratio.mean)}; without normalization the mode changes nothing."
    )


def _method(record: Record) -> tuple[str, ...]:
    config, resolved = record.config, record.resolved
    return (
        f"Data: {data_label(record)}, {resolved['train_images']:,} training and {resolved['validation_images']:,} test "
        "images of 28 x 28 pixels, made binary at half of full brightness. The defaults of learning rate and initial "
        "weights were chosen on training images kept aside. "
        "A seed decides initial weights and order of the images, alike in every arm.",
        f"Training: SGD without momentum or weight decay, learning rate {rate(config['lr'])} throughout; weights from "
        f"a normal distribution of standard deviation {rate(config['init_std'])}, biases from zero. Normalization "
        "stands between each hidden layer's linear map and its sigmoids. It ran on "
        f"{resolved['device']} in {resolved['precision']}.",
        "What reaches the last hidden layer's sigmoids is measured over the test images in training mode, as in the "
        f"paper, in batches of {config['batch_size']} that are normalized by their own moments; running statistics are "
        "left alone. In this mode a normalized input has, by construction, the mean and the standard deviation that "
        "the layer's bias and weight say, so that it can shift only as far as these are trained to. The figures show "
        "the layer's first sigmoid in the first seed; nobody chose it.",
        "Measured before training, after each hundredth of it and, within the first, after 1, 2, 4, ... steps. The "
        "common accuracy of a seed is the lower of the two that batch norm and no normalization end with.",
    )


def _figures(*drawings: Drawing | None) -> tuple[Block, ...]:
    drawn = [drawing for drawing in drawings if drawing is not None]
    return (Figures(drawn),) if drawn else ()

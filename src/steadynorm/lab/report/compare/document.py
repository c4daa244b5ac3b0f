"""What the report of a comparison says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steadynorm.lab.analysis import pictures
from steadynorm.lab.records import Record
from steadynorm.lab.report.compare.expectations import expectations
from steadynorm.lab.report.compare.figures import draw_all
from steadynorm.lab.report.compare.headline import headline, setting
from steadynorm.lab.report.compare.summary import ArmSummary, findings, is_finished, summarise
from steadynorm.lab.report.compare.tables import headline_table, short_table
from steadynorm.lab.report.compare.writeup import expected_from, tuning_note, writeup
from steadynorm.lab.report.document import Block, Expectations, Figures, Report, Section, Text, expected
from steadynorm.lab.report.figure import Drawing
from steadynorm.lab.report.method import data_method, training_method

__all__ = ["make_report"]


def make_report(record: Record) -> Report:
    """Say what a comparison found."""
    found = {picture.name: [summarise(record, arm) for arm in picture.arms] for picture in pictures(record)}
    shared = found["shared"]
    drawings, table = draw_all(record), headline_table(record, shared)
    judged = (Text(expected_from(record)), Expectations(expectations(record, shared)))
    return Report(
        headline=headline(record, shared),
        lead=setting(record, shared),
        table=short_table(found.values()),
        sections=(
            Section(key="result", title="Result", blocks=(table, *(Text(line) for line in writeup(record, shared)))),
            expected(*judged),
            Section(key="curves", title="Accuracy and loss", short="Curves", blocks=_figures(drawings["curves"])),
            Section(
                key="gradients",
                title="Gradient norms and time",
                short="Gradients and time",
                blocks=_figures(drawings["gradients"]),
            ),
            Section(
                key="tuning",
                title="Each at its own learning rate",
                short="Learning rates",
                blocks=_tuning(record, found.get("tuned", []), drawings),
            ),
        ),
        method=_method(record),
        finished=is_finished(record),
        findings=findings(record),
    )


def _figures(drawings: Sequence[Drawing]) -> tuple[Block, ...]:
    return (Figures(drawings),) if drawings else ()


def _tuning(
    record: Record, tuned: Sequence[ArmSummary], drawings: Mapping[str, tuple[Drawing, ...]]
) -> tuple[Block, ...]:
    if not drawings["tuning"]:
        return ()
    table = (headline_table(record, tuned, with_rate=True),) if tuned else ()
    return (Text(tuning_note(record, tuned)), *table, *_figures(drawings["tuning"]))


def _method(record: Record) -> tuple[str, ...]:
    tuned = ("Learning rates were chosen on training images kept aside, never on the validation images.",)
    return (
        f"{data_method(record)} A seed decides the initial weights, the order of the images and their augmentation, "
        "alike in every arm.",
        *training_method(record),
        "The gradient norm is the l2 norm over all parameters, at every step, before the step is taken. Its steadiness "
        "is the 95th over the 5th percentile of the steps of an epoch, then the median over the epochs.",
        "A run whose loss stops being finite is stopped and counted as diverged; means of final accuracy are over the "
        "runs that finished.",
        *(tuned if record.config["tune_lr"] else ()),
    )

import pytest

from steadynorm.lab.records import CellRecord, Record
from steadynorm.lab.report.classic.headline import headline, setting
from steadynorm.lab.report.classic.summary import ArmSummary, summarise
from steadynorm.lab.report.wording import data_label
from tests.support.classic import cell, made_record

BATCH = [
    cell("batch_norm", seed, (0.1, 0.5, 0.9 + 0.01 * seed, 0.9, 0.9 + 0.01 * seed), drift=(0.1, 0.1, 0.1))
    for seed in (0, 1)
]
PLAIN = [cell("none", seed, (0.1, 0.1, 0.1, 0.6, 0.8 + 0.01 * seed), drift=(0.4, 0.5, 0.6)) for seed in (0, 1)]
BETTER = [cell("none", seed, (0.1, 0.1, 0.1, 0.6, 0.95 + 0.01 * seed)) for seed in (0, 1)]
ALIKE = [cell("none", 0, (0.1, 0.1, 0.1, 0.6, 0.89)), cell("none", 1, (0.1, 0.1, 0.1, 0.6, 0.904))]
AS_SOON = [cell("none", seed, (0.1, 0.1, 0.8 + 0.01 * seed, 0.8, 0.8 + 0.01 * seed)) for seed in (0, 1)]
LOST = [cell("none", seed, (0.1, 0.1), diverged=True) for seed in (0, 1)]


def summaries(record: Record) -> list[ArmSummary]:
    return [summarise(record, arm) for arm in record.config["arms"]]


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (
            [*BATCH, *PLAIN],
            "With batch norm the sigmoid network ends at 90.5 % test accuracy on {data}, 10.0 points higher than "
            "without; the common level takes 10 steps with it, 30 without",
        ),
        (
            [*BATCH, *BETTER],
            "Without batch norm the sigmoid network ends at 95.5 % test accuracy on {data}, 5.0 points higher "
            "than with it; the common level takes 10 steps with it, 30 without",
        ),
        (
            [*BATCH, *ALIKE],
            "With batch norm and without, the sigmoid network ends alike: 90.5 % and 89.7 % test accuracy on {data}; "
            "the common level takes 10 steps with it, 30 without",
        ),
        (
            [*BATCH, *AS_SOON],
            "With batch norm the sigmoid network ends at 90.5 % test accuracy on {data}, 10.0 points higher than "
            "without",
        ),
        (BATCH, "The sigmoid network ends with batch norm at 90.5 % test accuracy on {data}"),
        ([*BATCH, *LOST], "The sigmoid network ends with batch norm at 90.5 % test accuracy on {data}"),
        (LOST, "No network ended with a finite loss: no normalization"),
        ([], "Nothing is measured yet"),
    ],
)
def test_the_headline_says_what_was_measured(cells: list[CellRecord], sentence: str) -> None:
    record = made_record(cells)
    assert headline(record, summaries(record)).replace("\N{NO-BREAK SPACE}", " ") == sentence.format(
        data=data_label(record)
    )


def test_one_seed_is_said_to_have_no_spread() -> None:
    record = made_record([BATCH[0], PLAIN[0]], seeds=(0,))
    assert setting(record, summaries(record)).endswith("normalization alone; one seed, so no spread is known.")


def test_runs_left_out_of_means_are_named() -> None:
    record = made_record([*BATCH, PLAIN[0], LOST[1]])
    assert setting(record, summaries(record)).endswith("left out of all means: 1 with no normalization.")


def test_networks_that_may_be_guessing_are_not_called_alike() -> None:
    record = made_record([cell(arm, seed, (0.1, 0.11)) for arm in ("batch_norm", "none") for seed in (0, 1)])
    text = headline(record, summaries(record)).replace("\N{NO-BREAK SPACE}", " ")
    assert text == ("Neither sigmoid network is surely better than guessing: 11.0 % with batch norm, 11.0 % without")

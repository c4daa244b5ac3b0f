"""What the report of the sigmoid network says, from made-up numbers and from those of docs/results."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steadynorm.lab.describe.arms import Arm
from steadynorm.lab.experiments.classic import SHIFTS, arms_of, describe
from steadynorm.reporting.records import Cell, Measurement
from steadynorm.reporting.report import Claim, Figure, Report, Table
from tests.reporting.browser import CHROMIUM, chromium
from tests.support.classic import cell, made_record
from tests.support.documented import check_equals, content_of, few_values, record_of
from tests.support.records import check_page, summary_json

BATCH = [
    cell("batch_norm", seed, (0.1, 0.5, 0.9 + 0.01 * seed, 0.9, 0.9 + 0.01 * seed), drift=(0.1, 0.1, 0.1))
    for seed in (0, 1)
]
PLAIN = [cell("none", seed, (0.1, 0.1, 0.1, 0.6, 0.8 + 0.01 * seed), drift=(0.4, 0.5, 0.6)) for seed in (0, 1)]
BETTER = [cell("none", seed, (0.1, 0.1, 0.1, 0.6, 0.95 + 0.01 * seed)) for seed in (0, 1)]
ALIKE = [cell("none", 0, (0.1, 0.1, 0.1, 0.6, 0.89)), cell("none", 1, (0.1, 0.1, 0.1, 0.6, 0.904))]
AS_SOON = [cell("none", seed, (0.1, 0.1, 0.8 + 0.01 * seed, 0.8, 0.8 + 0.01 * seed)) for seed in (0, 1)]
LOST = [cell("none", seed, (0.1, 0.1), diverged=True) for seed in (0, 1)]
FIRST = [cell("batch_norm", 0, (0.1, 0.5, 0.9, 0.88, 0.92)), cell("batch_norm", 1, (0.1, 0.9, 0.9, 0.9, 0.9))]
SECOND = [cell("none", 0, (0.1, 0.1, 0.2, 0.7, 0.9)), cell("none", 1, (0.1, 0.2, 0.3, 0.94, 0.95))]

TWO = "n = 2".replace(" ", "\N{NO-BREAK SPACE}")


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def summary_of(cells: Sequence[Cell], arm: str, **changes: Sequence[str]) -> Arm:
    return next(one for one in arms_of(made_record(cells, **changes)) if one.arm == arm)


def figure(report: Report, name: str) -> Figure:
    return next(one for one in report.figures if one.name == name)


def table(report: Report) -> Table:
    return next(block for block in report.blocks if isinstance(block, Table))


@pytest.fixture(scope="module")
def whole() -> Report:
    return describe(made_record([*BATCH, *PLAIN]))


# The numbers of an arm.


def test_final_accuracy_is_that_after_the_last_step() -> None:
    found = summary_of([*FIRST, *SECOND], "batch_norm")["test_accuracy"]
    assert (found.mean, found.low, found.high, found.n) == (pytest.approx(0.91), 0.9, 0.92, 2)


def test_common_accuracy_is_the_lower_end_of_the_pair_in_each_seed() -> None:
    # Seed 0: 90 %, first at step 10 and 30; seed 1: 90 %, at 1 and 20.
    batch, none = (summary_of([*FIRST, *SECOND], arm)["steps_to_common"] for arm in ("batch_norm", "none"))
    assert (batch.low, batch.high, none.low, none.high) == (1, 10, 20, 30)


def test_without_the_other_arm_of_a_seed_there_is_no_common_accuracy() -> None:
    batch = summary_of([*FIRST, SECOND[1]], "batch_norm")
    assert batch.values["steps_to_common"] == pytest.approx([math.nan, 1], nan_ok=True)


def test_an_end_that_diverged_is_no_common_accuracy() -> None:
    batch = summary_of([*FIRST, cell("none", 0, (0.1, 0.1), diverged=True), SECOND[1]], "batch_norm")
    assert batch.values["steps_to_common"] == pytest.approx([math.nan, 1], nan_ok=True)


def test_a_third_arm_may_never_be_there() -> None:
    layer = [cell("layer_norm", 0, (0.1, 0.1, 0.1, 0.1, 0.89)), cell("layer_norm", 1, (0.1, 0.1, 0.9, 0.1, 0.1))]
    found = summary_of([*FIRST, *SECOND, *layer], "layer_norm", arms=("batch_norm", "none", "layer_norm"))
    assert found.values["steps_to_common"] == [math.inf, 10]
    assert (found["steps_to_common"].mean, found["steps_to_common"].n) == (10, 1)


def test_shifts_are_those_of_the_middle_sigmoid() -> None:
    wide = cell("batch_norm", 0, (0.1,) * 5, drift=(9.0, 0.3, 0.5), width_ratio=(math.nan, 7.0, 1.0))
    found = summary_of([wide], "batch_norm")
    assert (found["drift"].mean, found["path"].mean, found["width_ratio"].mean) == (
        0.5,
        2.0,
        7.0,
    )  # NaN counts as farthest


def test_evaluation_has_shifts_of_its_own() -> None:
    found = summary_of(FIRST, "batch_norm")
    shifts = [found["eval_drift"], found["eval_path"], found["eval_width_ratio"]]
    assert [shift.mean for shift in shifts] == pytest.approx([2.0, 20.0, 30.0])


def test_diverged_cells_are_counted_and_left_out() -> None:
    found = summary_of([*FIRST, SECOND[0], cell("none", 1, (0.1, 0.2), diverged=True)], "none")
    assert (len(found.ended), found.diverged_at_step) == (2, (10,))
    assert (found["test_accuracy"].mean, found["test_accuracy"].n) == (0.9, 1)
    assert found["drift"].n == 1
    assert (found["seconds"].mean, found["seconds"].n) == (12.0, 1)


def test_a_curve_is_over_the_cells_that_reached_a_step() -> None:
    record = made_record([SECOND[0], cell("none", 1, (0.3, 0.2), diverged=True)])
    found = describe(record).findings["test_accuracy"]["none"]
    assert [(step, point.n) for step, point in found.items()] == [(0, 2), (1, 2), (10, 1), (20, 1), (30, 1)]
    assert (found[0].mean, found[0].low, found[0].high) == (pytest.approx(0.2), 0.1, 0.3)


def test_the_shown_unit_is_the_first() -> None:
    found = describe(made_record(SECOND)).findings["shown_unit"]["none-seed0"]
    assert found["p15"] == {0: -1.0, 1: -1.1, 10: -2.0, 20: -3.0, 30: -4.0}
    assert found["p50"] == dict.fromkeys((0, 1, 10, 20, 30), 0.0)


def test_findings_hold_what_a_program_wants() -> None:
    found = describe(made_record([*FIRST, *SECOND])).findings
    assert found["arms"]["none"]["test_accuracy"].n == 2
    assert found["test_accuracy"]["batch_norm"][10].mean == pytest.approx(0.9)
    drift = found["sigmoids"]["none"]["drift"]
    assert (drift.low, drift.high, drift.n) == (0.1, 0.9, 6)
    assert list(found["shown_unit"]) == ["batch_norm-seed0", "none-seed0"]


# The report.


def test_finished_is_when_every_planned_cell_is_measured() -> None:
    assert describe(made_record([*BATCH, *PLAIN])).finished
    assert not describe(made_record([*BATCH, PLAIN[0]])).finished


def test_a_record_that_broke_off_before_its_cells_were_planned_has_a_report() -> None:
    found = describe(replace(made_record([]), cells=()))
    assert (found.headline, found.finished) == ("Nothing is measured yet", False)


@pytest.mark.parametrize(
    ("cells", "finished"), [([], False), (BATCH[:1], False), (LOST, False), ([*BATCH, *LOST], True)]
)
def test_a_report_of_what_there_is_can_always_be_made(cells: list[Cell], finished: bool) -> None:
    written = json.loads(json.dumps(summary_json(made_record(cells)), allow_nan=False))
    assert written["finished"] is finished and len(written["expectations"]) == 4


def test_all_arms_share_figures_of_accuracy_loss_percentiles_and_shifts(whole: Report) -> None:
    assert [one.name for one in whole.figures] == ["test_accuracy", "train_loss", "percentiles", "shifts"]
    assert list(describe(made_record([])).figures) == []


def test_the_figures_draw_the_numbers(whole: Report) -> None:
    accuracy, loss, percentiles = (
        pd.DataFrame(figure(whole, name).data) for name in ("test_accuracy", "train_loss", "percentiles")
    )
    own = accuracy[(accuracy["arm"] == "no normalization") & (accuracy["step"] == 30)]
    assert list(own["value"]) == [0.8, 0.81] and 0 not in set(accuracy["step"])
    assert set(loss[loss["step"] == 20]["value"]) == {1 / 20}
    last = percentiles[percentiles["step"] == 30].set_index("arm")
    for arm in ("batch norm", "no normalization"):
        assert list(last.loc[arm, ["p15", "p50", "p85"]]) == [-4.0, 0.0, 6.0]
    assert figure(whole, "percentiles").options["band"] == ("p15", "p85")
    assert "Seed 0." in figure(whole, "percentiles").caption


def test_a_sigmoid_without_a_width_has_no_point() -> None:
    wide = cell("batch_norm", 0, (0.1,) * 5, drift=(9.0, math.nan, 0.5), width_ratio=(math.nan, 7.0, 1.0))
    data = pd.DataFrame(figure(describe(made_record([wide])), "shifts").data)
    assert list(zip(data["drift"], data["width_ratio"], strict=True)) == [(0.5, 1.0)]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
@pytest.mark.parametrize("cells", [[*BATCH, *PLAIN], [*BATCH, *LOST], []])
def test_the_page_from_record_files_alone_fits_wide_and_narrow_screens(tmp_path: Path, cells: list[Cell]) -> None:
    check_page(made_record(cells), tmp_path)
    with chromium() as browser:
        for width in (1280, 400):
            browser.open(tmp_path / "report.html", width=width)
            assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_tables_say_how_each_arm_ended() -> None:
    found = describe(made_record([*BATCH, LOST[1]], arms=("batch_norm", "none", "layer_norm")))
    assert [row[-1].text for row in table(found).rows] == ["finished", "1 of 2 diverged at step 10", "waiting"]
    assert table(found).rows[1][-1].note == "1 of 2 measured"
    assert [plain(row[2].text) for row in found.table.rows] == ["90.5 ± 0.7 %", "1 of 2 diverged at step 10", "—"]


def test_an_arm_with_seeds_to_come_says_how_many_are_measured() -> None:
    assert [row[-1].text for row in table(describe(made_record(BATCH[:1]))).rows] == ["1 of 2 measured", "waiting"]


def test_the_table_holds_mean_and_range_of_the_seeds() -> None:
    none = [cell("none", seed, (0.1, 0.1, 0.1, 0.6, 0.8), drift=(0.25 + 0.5 * seed,) * 3) for seed in (0, 1)]
    found = [(plain(entry.text), entry.note) for entry in table(describe(made_record([*BATCH, *none]))).rows[1]]
    assert found[0] == ("No normalization", "")
    assert found[1][0] == "80.0 ± 0.0 %"
    assert found[2] == ("30", f"30 to 30, {TWO}")
    assert found[4] == ("0.500", f"0.250 to 0.750, {TWO}")
    assert found[7] == ("12.0 s", "")


def test_an_arm_that_is_never_at_the_common_accuracy_says_so() -> None:
    none = cell("none", 0, (0.1, 0.1, 0.1, 0.6, 0.8))
    cells = [BATCH[0], none, cell("layer_norm", 0, (0.1,) * 5)]
    row = table(describe(made_record(cells, arms=("batch_norm", "none", "layer_norm"), seeds=(0,)))).rows[2]
    assert (row[2].text, row[2].note) == ("never", "never in 1 of 1 seeds")


def test_an_arm_that_is_rarely_at_the_common_accuracy_says_so_beside_its_mean() -> None:
    layer = [cell("layer_norm", 0, (0.1,) * 5), cell("layer_norm", 1, (0.1, 0.1, 0.9, 0.1, 0.1))]
    found = describe(made_record([*FIRST, *SECOND, *layer], arms=("batch_norm", "none", "layer_norm")))
    assert (table(found).rows[2][2].text, table(found).rows[2][2].note) == ("10", "never in 1 of 2 seeds")


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (
            [*BATCH, *PLAIN],
            "Accuracy 90.5 % with batch norm, 80.5 % without; common level in 10 and 30 steps",
        ),
        (
            [*BATCH, *BETTER],
            "Accuracy 90.5 % with batch norm, 95.5 % without; common level in 10 and 30 steps",
        ),
        ([*BATCH, *ALIKE], "Alike: 90.5 % with batch norm, 89.7 % without; common level in 10 and 30 steps"),
        ([*BATCH, *AS_SOON], "Accuracy 90.5 % with batch norm, 80.5 % without"),
        (BATCH, "Accuracy 90.5 % with batch norm"),
        ([*BATCH, *LOST], "Accuracy 90.5 % with batch norm"),
        (LOST, "No network ended with a finite loss: no normalization"),
        ([], "Nothing is measured yet"),
    ],
)
def test_the_headline_says_what_was_measured(cells: list[Cell], sentence: str) -> None:
    assert plain(describe(made_record(cells)).headline) == sentence


def test_without_the_pair_the_arms_are_named_or_the_best_is() -> None:
    arms = ("layer_norm", "self_tuned_batch_norm", "torch_batch_norm")
    cells = [cell(arm, 0, (0.1, 0.2, 0.3, 0.4, 0.5 + 0.1 * place)) for place, arm in enumerate(arms)]
    all_of_them = describe(made_record(cells, arms=arms, seeds=(0,))).headline
    assert plain(all_of_them) == "Accuracy 70.0 % with torch's batch norm, the highest of 3 arms"
    two = describe(made_record(cells[:2], arms=arms[:2], seeds=(0,))).headline
    assert plain(two) == "Accuracy 50.0 % with layer norm and 60.0 % with self-tuned batch norm"


def test_one_seed_is_said_to_have_no_spread() -> None:
    found = describe(made_record([BATCH[0], PLAIN[0]], seeds=(0,)))
    assert found.lead.endswith("normalization alone; one seed, so no spread is known.")


def test_runs_left_out_of_means_are_named() -> None:
    found = describe(made_record([*BATCH, PLAIN[0], LOST[1]]))
    assert found.lead.endswith("left out of final means: 1 of 2 with no normalization.")


def test_networks_that_may_be_guessing_are_not_called_alike() -> None:
    record = made_record([cell(arm, seed, (0.1, 0.11)) for arm in ("batch_norm", "none") for seed in (0, 1)])
    assert plain(describe(record).headline) == (
        "Neither is surely better than guessing: 11.0 % with batch norm, 11.0 % without"
    )
    one = made_record([*BATCH, *(cell("none", seed, (0.1, 0.11)) for seed in (0, 1))])
    assert plain(describe(one).headline).startswith("Accuracy 90.5 % with batch norm, 11.0 % without")


# What is claimed.


def judged(cells: list[Cell], *, arms: Sequence[str] = ("batch_norm", "none")) -> tuple[Claim, ...]:
    return describe(made_record(cells, arms=arms)).claims


def verdicts(cells: list[Cell], **changes: Sequence[str]) -> list[str]:
    return [item.verdict for item in judged(cells, **changes)]


def test_all_is_met_where_batch_norm_is_ahead_in_everything() -> None:
    steady = [cell("batch_norm", seed, (0.1, 0.9, 0.9, 0.9, 0.9), width_ratio=(1.0, 1.5, 2.0)) for seed in (0, 1)]
    moving = [cell("none", seed, (0.1, 0.1, 0.1, 0.1, 0.8), drift=(1.0, 1.0, 1.0)) for seed in (0, 1)]
    assert verdicts([*steady, *moving]) == ["met"] * 4


def test_each_verdict_has_its_numbers_beside_it() -> None:
    none = [cell("none", seed, (0.1, 0.1, 0.1, 0.6, 0.8), drift=(0.5,) * 3, width_ratio=(7.0,) * 3) for seed in (0, 1)]
    sentences = [plain(item.measured) for item in judged([*BATCH, *none])]
    assert sentences[0] == "After the last step: 90.5 % with batch norm, 80.0 % without."
    assert sentences[1] == "First measured step there: 10 with batch norm, 30 without."
    assert sentences[2].startswith("The middle one's drift: 0.100 with batch norm, 0.500 without.")
    assert sentences[3].startswith("The middle one's change of width: 3.00 with batch norm, 7.00 without.")


def test_what_batch_norm_does_worse_is_not_met() -> None:
    batch = [cell("batch_norm", seed, (0.1, 0.1, 0.1, 0.1, 0.8), drift=(1.0, 1.0, 1.0)) for seed in (0, 1)]
    none = [cell("none", seed, (0.1, 0.9, 0.9, 0.9, 0.9), width_ratio=(1.0, 1.5, 2.0)) for seed in (0, 1)]
    assert verdicts([*batch, *none]) == ["not met"] * 4


def test_overlapping_seeds_meet_no_expectation_and_it_is_said() -> None:
    first = judged([*BATCH, *ALIKE])[0]
    assert first.verdict == "not met"
    assert plain(first.measured) == (
        "After the last step: 90.5 % with batch norm, 89.7 % without; the seeds' ranges overlap."
    )


def test_what_is_missing_is_not_measured() -> None:
    assert verdicts([]) == ["not measured"] * 4
    assert verdicts(BATCH) == ["not measured"] * 4
    assert verdicts(BATCH, arms=("batch_norm",)) == ["not measured"] * 4
    lost = judged([*BATCH, *LOST])
    assert [item.verdict for item in lost] == ["not measured"] * 4
    assert "No normalization: 2 of 2 diverged at step 10 and 10." in {item.measured for item in lost}


def test_networks_that_may_be_guessing_decide_nothing() -> None:
    none = [cell("none", seed, (0.1, 0.1, 0.1, 0.1, (0.8, 0.11)[seed]), drift=(1.0,) * 3) for seed in (0, 1)]
    found = judged([*BATCH, *none])
    assert {item.verdict for item in found} == {"not measured: at chance"}
    assert plain(found[0].measured).startswith(
        "No normalization at 11.0 %, not surely above the 10.0 % of guessing. After the last step: 90.5 %"
    )


# The records in docs/results.


@pytest.mark.parametrize("name", ["classic_cpu_20261123", "classic_lr3_cpu_20261123"])
def test_a_report_equals_the_record_in_docs(name: str) -> None:
    content = content_of(name) | {"runs": []}
    del content["sigmoids"]  # of a hundred sigmoids each; the record has no single one's shifts
    check_equals(summary_json(record_of(content, list(_cells(content)))), content)


def _cells(content: dict[str, Any]) -> Iterator[Cell]:
    """Give cells with the record's means and ranges, and with first steps at the common accuracy that make its own."""
    curves = {
        arm: {int(step): _accuracies(content, found) for step, found in curve.items()}
        for arm, curve in content["test_accuracy"].items()
    }
    last = int(content["config"]["steps"])
    common = [min(ends) for ends in zip(*(curve[last] for curve in curves.values()), strict=True)]
    for arm, curve in curves.items():
        found = content["arms"][arm]
        seeds = _assigned(curve, common, few_values(found["steps_to_common"]), last)
        for place, seed in enumerate(content["config"]["seeds"]):
            rows = [
                Measurement(step=step, quantity="test_accuracy", value=values[place]) for step, values in seeds.items()
            ]
            unit = content["shown_unit"].get(f"{arm}-seed{seed}", {})
            rows += [
                Measurement(subject="unit 0", step=int(step), quantity=quantity, value=value)
                for quantity, values in unit.items()
                for step, value in values.items()
            ]
            for name in ("train_loss", *SHIFTS):
                value = few_values(found[name])[place]
                rows.append(Measurement(step=last, quantity=name, value=value, subject="unit 0" * (name in SHIFTS)))
            seconds = few_values(found["seconds"])[place]
            yield Cell(factors={"arm": arm, "seed": seed}, status="finished", measurements=tuple(rows), seconds=seconds)


def _accuracies(content: dict[str, Any], found: dict[str, float]) -> list[float]:
    """Give three accuracies as the shares of images that they are."""
    images = content["resolved"]["validation_images"]
    return [round(value * images) / images for value in few_values(found)]


def _assigned(
    curve: dict[int, list[float]], common: list[float], firsts: list[float], last: int
) -> dict[int, tuple[float, ...]]:
    """Give the values of each step to the seeds, each first at its common accuracy at one of these steps."""

    def fits(step: int, values: Sequence[float], first: Sequence[float]) -> bool:
        reached = zip(values, common, first, strict=True)
        return all(step > at or (value >= level) == (step == at) for value, level, at in reached)

    for first in itertools.permutations(map(round, firsts)):
        found = {
            step: next((one for one in orders if fits(step, one, first)), None)
            for step, values in curve.items()
            for orders in [[tuple(values)] if step == last else itertools.permutations(values)]
        }
        if None not in found.values():
            return {step: values for step, values in found.items() if values}
    raise AssertionError("no seeds have these first steps")


def test_the_method_says_that_the_time_includes_compilation() -> None:
    assert "includes the compilation of its kernels" in describe(made_record([*BATCH, *PLAIN])).method[-1]


def test_other_data_are_described_and_the_expectations_said_to_be_of_mnist() -> None:
    made = made_record([*BATCH, *PLAIN])
    made.resolved.update(image_size=[40, 48], channels=3, validation_images=18, chance=0.1)
    found = describe(made)
    method = " ".join(found.method)
    assert "images of 40 x 48 pixels in color in 10 classes, made binary" in method
    assert "brightness, each channel by itself." in method and "in batches of 18 that are normalized" in method
    assert any("The paper's expectations, which are of MNIST." in str(vars(block)) for block in found.blocks)

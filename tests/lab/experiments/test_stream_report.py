"""What the report of batch size 1 says of made-up numbers, and of the record in docs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadynorm.lab.experiments.stream import arms_of, describe, on_single_images
from steadynorm.reporting.records import Cell, Measurement, Record
from steadynorm.reporting.report import Figure, Table
from tests.support.documented import check_equals, content_of, few_values, record_of
from tests.support.records import check_page, summary_json, with_factors
from tests.support.records import record as compare_record
from tests.support.records import run as compare_run

METHODS = ["stored", "batch", "gated", "gate"]


def default(accuracy: float, *, seed: int = 0) -> Cell:
    return compare_run("batch_norm", val_accuracy=[accuracy / 2, accuracy], seed=seed)


def single(arm: str, accuracy: float | None, *, seed: int = 0) -> Cell:
    """A run at batch size 1 that ended at an accuracy, or diverged at step 17."""
    lost = {"status": "diverged", "diverged_at_step": 17} if accuracy is None else {}
    values = [] if accuracy is None else [accuracy / 2, accuracy]
    made = compare_run(arm, val_accuracy=values, seed=seed, lr=0.1 / 128, planned=2, **lost)
    return with_factors(made, batch_size=1)


def recalibrated(arm: str, accuracy: float, *, seed: int = 0) -> Cell:
    rows = (Measurement(quantity="accuracy", value=accuracy),)
    return Cell(factors={"part": "recalibrated", "arm": arm, "seed": seed}, status="finished", measurements=rows)


def predicted(order: str, accuracies: dict[str, float], *, seed: int = 0) -> Cell:
    rows = tuple(Measurement(subject=name, quantity="accuracy", value=value) for name, value in accuracies.items())
    return Cell(factors={"part": "stream", "order": order, "seed": seed}, status="finished", measurements=rows)


def streamed(order: str, *accuracies: float, seed: int = 0) -> Cell:
    return predicted(order, dict(zip(METHODS, accuracies, strict=True)), seed=seed)


def stream_record(runs: list[Cell], cells: list[Cell], **changes: object) -> Record:
    config = {"arms": ["gated_batch_norm", "batch_norm"], "methods": METHODS, "stream_images": 100, "epochs": 2}
    made = compare_record(runs, **(config | changes))
    return replace(made, experiment="stream", cells=(*runs, *cells))


RUNS = [default(0.7), single("gated_batch_norm", 0.6), single("batch_norm", 0.2)]
CELLS = [
    recalibrated("gated_batch_norm", 0.61),
    recalibrated("batch_norm", 0.55),
    streamed("iid", 0.7, 0.3, 0.69, 0.698),
    streamed("class_ordered", 0.7, 0.3, 0.6, 0.68),
]


def two_seeds(defaults: tuple[float, float], gated: tuple[float | None, float | None]) -> Record:
    runs = [default(value, seed=seed) for seed, value in enumerate(defaults)]
    runs += [single("gated_batch_norm", value, seed=seed) for seed, value in enumerate(gated)]
    return stream_record(runs, [], arms=["gated_batch_norm"], seeds=[0, 1])


def verdicts(made: Record) -> list[str]:
    return [item.verdict for item in describe(made).claims]


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def cells_of(table: Table) -> list[list[str]]:
    return [[plain("|".join(filter(None, (one.text, one.note)))) for one in row] for row in table.rows]


def figure(name: str, made: Record) -> Figure:
    return next(one for one in describe(made).figures if one.name == name)


def test_drops_are_held_against_the_same_seed() -> None:
    drop = arms_of(two_seeds((0.7, 0.8), (0.6, 0.5)))[0]["drop"]
    assert (drop.mean, drop.low, drop.high) == pytest.approx((0.2, 0.1, 0.3))


def test_a_seed_without_a_default_build_has_no_drop() -> None:
    runs = [default(0.7), single("gated_batch_norm", 0.6), single("gated_batch_norm", 0.5, seed=1)]
    found = arms_of(stream_record(runs, [], seeds=[0, 1]))[0]
    assert (found["drop"].n, found["drop"].mean, found["accuracy"].n) == (1, pytest.approx(0.1), 2)


def test_the_headline_says_what_both_lose() -> None:
    report = describe(stream_record(RUNS, CELLS))
    said = "At batch size 1 gated batch norm loses 10.0 points, plain batch norm loses 50.0 points"
    assert plain(report.headline) == said
    assert report.finished


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([default(0.7), single("gated_batch_norm", 0.75)], "At batch size 1 gated batch norm gains 5.0 points"),
        ([default(0.7), single("gated_batch_norm", None)], "At batch size 1 gated batch norm diverged"),
        ([], "No gated network has been trained at batch size 1 yet"),
    ],
    ids=["gained", "diverged", "waiting"],
)
def test_the_headline_says_what_became_of_the_gated_layer(runs: list[Cell], said: str) -> None:
    assert plain(describe(stream_record(runs, [])).headline) == said


def test_the_verdicts_follow_the_numbers() -> None:
    assert verdicts(stream_record(RUNS, CELLS)) == ["met", "met", "met", "met", "met", "not met"]


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.551, "met"), (0.549, "not met"), (None, "not met")])
def test_a_drop_beyond_fifteen_points_falsifies(accuracy: float | None, verdict: str) -> None:
    runs = [RUNS[0], single("gated_batch_norm", accuracy), RUNS[2]]
    assert verdicts(stream_record(runs, CELLS))[0] == verdict


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.551, "met"), (0.549, "not met")])
def test_evaluation_alone_is_held_against_the_same_limit_in_the_worse_order(accuracy: float, verdict: str) -> None:
    cells = [*CELLS[:3], streamed("class_ordered", 0.7, 0.3, accuracy, 0.7)]
    assert verdicts(stream_record(RUNS, cells))[1] == verdict


def test_evaluation_alone_is_held_against_its_worst_seed() -> None:
    cells = [streamed("iid", 0.7, 0.3, accuracy, 0.7, seed=seed) for seed, accuracy in enumerate((0.5, 0.9))]
    cells.append(streamed("class_ordered", 0.7, 0.3, 0.69, 0.7))
    assert verdicts(stream_record(RUNS, cells, seeds=[0, 1]))[1] == "not met"


def test_the_worst_seed_decides() -> None:
    found = describe(two_seeds((0.7, 0.7), (0.69, 0.5))).claims[0]
    assert found.verdict == "not met"
    assert "5.0\N{NO-BREAK SPACE}points beyond" in found.measured


def test_a_seed_that_diverges_falsifies_and_is_named() -> None:
    found = describe(two_seeds((0.7, 0.7), (0.69, None))).claims[0]
    assert found.verdict == "not met"
    assert plain(found.measured) == (
        "It loses 1.0 points (one seed), 14.0 points within the limit at worst. 1 of 2 runs diverged."
    )


def test_a_default_build_near_chance_cannot_lose_so_much() -> None:
    runs = [default(0.24), single("gated_batch_norm", 0.2), RUNS[2]]
    assert verdicts(stream_record(runs, CELLS))[0] == "not measured"


def test_the_gated_layer_pays_less_where_every_seed_does() -> None:
    runs = [*two_seeds((0.7, 0.7), (0.6, 0.4)).cells, single("batch_norm", 0.45), single("batch_norm", 0.3, seed=1)]
    assert verdicts(stream_record(runs, CELLS, seeds=[0, 1]))[2] == "not met"


def test_statistics_are_not_blamed_for_what_weights_lost() -> None:
    cells = [CELLS[0], recalibrated("batch_norm", 0.3), *CELLS[2:]]
    assert verdicts(stream_record(RUNS, cells))[3] == "not met"


def test_statistics_measured_again_can_lose_more() -> None:
    cells = [CELLS[0], recalibrated("batch_norm", 0.15), *CELLS[2:]]
    found = describe(stream_record(RUNS, cells)).claims[3]
    assert plain(found.measured) == "It loses 50.0 points; statistics measured again lose 5.0 points more."


def test_methods_are_held_against_stored_ones_on_the_same_images() -> None:
    made = stream_record(RUNS, CELLS)
    mixed, ordered = (
        {one.arm: one["gain"].mean for one in on_single_images(made, order)} for order in ("iid", "class_ordered")
    )
    assert mixed["batch"] == pytest.approx(-0.4)
    assert ordered["gate"] == pytest.approx(-0.02)
    assert mixed["stored"] == 0


def test_gains_are_of_the_same_seed() -> None:
    cells = [streamed("iid", 0.5, 0.6, 0.5, 0.5), streamed("iid", 0.7, 0.5, 0.7, 0.7, seed=1)]
    gain = on_single_images(stream_record(RUNS, cells), "iid")[1]["gain"]
    assert (gain.mean, gain.low, gain.high) == pytest.approx((-0.05, -0.2, 0.1))


def test_the_result_begins_with_the_figure_and_shows_every_arm() -> None:
    made = stream_record(
        [*RUNS, single("group_norm", 0.65), single("batch_renorm", None)],
        [*CELLS, recalibrated("group_norm", 0.65)],
        arms=["gated_batch_norm", "batch_norm", "group_norm", "batch_renorm", "layer_norm"],
    )
    figures, table, _ = describe(made).sections[0].shown
    assert [one.name for one in figures.items] == ["val_accuracy"]
    assert cells_of(table) == [
        ["Batch norm, the default build", "128", "70.0 %|one seed", "", ""],
        ["Gated batch norm", "1", "60.0 %|one seed", "+10.0 points", "61.0 %"],
        ["Batch norm", "1", "20.0 %|one seed", "+50.0 points", "55.0 %"],
        ["Group norm", "1", "65.0 %|one seed", "+5.0 points", "no such statistics"],
        ["Batch renorm", "1", "diverged at step 17", "—", "—"],
        ["Layer norm", "1", "—", "—", "no such statistics"],
    ]
    assert [row[0].tone for row in table.rows] == [f"series-{place}" for place in range(6)]


def test_the_figure_shows_the_default_build_first_and_each_arm_that_has_runs() -> None:
    found = figure("val_accuracy", stream_record(RUNS[:2], CELLS))
    rows = [(one["arm"], one["epoch"], one["value"]) for one in found.data]
    assert rows == [
        ("default build", 1, 0.35),
        ("default build", 2, 0.7),
        ("gated batch norm", 1, 0.3),
        ("gated batch norm", 2, 0.6),
    ]
    assert found.options["order"] == ["default build", "gated batch norm", "batch norm"]


def test_single_images_are_shown_by_method_and_order() -> None:
    section = describe(stream_record(RUNS, CELLS)).sections[-1]
    assert cells_of(section.shown[1]) == [
        ["Stored", "70.0 %", "70.0 %"],
        ["Batch", "30.0 %|-40.0 points against stored", "30.0 %|-40.0 points against stored"],
        ["Gated layers", "69.0 %|-1.0 points against stored", "60.0 %|-10.0 points against stored"],
        ["Gate", "69.8 %|-0.2 points against stored", "68.0 %|-2.0 points against stored"],
    ]


def test_the_figure_of_methods_has_their_gains_in_points() -> None:
    found = figure("ways", stream_record(RUNS, CELLS))
    rows = {(one["statistics"], one["order"]): one["gain"] for one in found.data}
    assert rows["batch", "well mixed"] == pytest.approx(-40)
    assert rows["gate", "class by class"] == pytest.approx(-2)
    assert {name for name, _ in rows} == {"batch", "gated layers", "gate"}


@pytest.mark.parametrize(
    "made",
    [
        stream_record([], []),
        stream_record(RUNS, CELLS),
        stream_record([replace(one, status="waiting", measurements=()) for one in RUNS], []),
        stream_record(RUNS, [replace(cell, status="waiting", measurements=()) for cell in CELLS]),
        stream_record([RUNS[0], single("gated_batch_norm", None), single("batch_norm", None)], CELLS[2:]),
        stream_record(RUNS, CELLS[:2], arms=["batch_norm"], methods=["batch"]),
    ],
    ids=["empty", "whole", "waiting", "no cells yet", "all diverged", "other arms"],
)
def test_every_record_makes_a_page(made: Record, tmp_path: Path) -> None:
    check_page(made, tmp_path)


def test_what_the_default_build_cannot_have_is_hidden_on_a_phone(tmp_path: Path) -> None:
    text = check_page(stream_record(RUNS, CELLS), tmp_path)
    for name in ("Below the default build", "With statistics measured again"):
        assert text.count(f'<td data-label="{name}" class="empty">') == 1


def test_a_report_is_finished_once_every_cell_is_measured() -> None:
    waiting = [*CELLS[:-1], replace(CELLS[-1], status="waiting", measurements=())]
    assert describe(stream_record(RUNS, CELLS)).finished
    assert not describe(stream_record(RUNS, waiting)).finished


def test_a_default_build_that_may_be_guessing_decides_nothing() -> None:
    runs = [default(0.105), single("gated_batch_norm", 0.104), single("batch_norm", 0.1)]
    report = describe(stream_record(runs, CELLS))
    assert {item.verdict for item in report.claims} == {"not measured", "not measured: at chance"}
    assert report.headline.startswith("The default build is not surely better than guessing (10.5")


def test_of_two_arms_both_have_to_fail_to_decide_nothing() -> None:
    both = [default(0.7), single("gated_batch_norm", 0.11), single("batch_norm", 0.1)]
    assert verdicts(stream_record(both, CELLS))[2] == "not measured: at chance"
    one = [default(0.7), single("gated_batch_norm", 0.5), single("batch_norm", 0.1)]
    assert verdicts(stream_record(one, CELLS))[2] == "met"


def rebuilt(name: str) -> Record:
    """The record behind a summary of two seeds: the values of each are its lowest and its highest, in some order."""
    content = content_of(name)
    return record_of(content, [*arm_cells(content), *method_cells(content)])


def arm_cells(content: dict[str, Any]) -> Iterator[Cell]:
    for arm in content["arms"]:
        for seed, accuracy in zip(content["config"]["seeds"], few_values(arm["recalibrated"]), strict=True):
            yield recalibrated(arm["arm"], accuracy, seed=seed)


def method_cells(content: dict[str, Any]) -> Iterator[Cell]:
    for order in dict.fromkeys(one["order"] for one in content["ways"]):
        ways = [one for one in content["ways"] if one["order"] == order]
        stored = few_values(next(one["accuracy"] for one in ways if one["method"] == "stored"))
        values = {one["method"]: in_order(few_values(one["accuracy"]), stored, one["gain"]["low"]) for one in ways}
        for place, seed in enumerate(content["config"]["seeds"]):
            yield predicted(order, {method: each[place] for method, each in values.items()}, seed=seed)


def in_order(values: list[float], stored: list[float], lowest: float) -> list[float]:
    """Order two values so that their lowest gain over the stored ones is the given one."""

    def distance(ordered: list[float]) -> float:
        return abs(min(value - other for value, other in zip(ordered, stored, strict=True)) - lowest)

    return min((values, values[::-1]), key=distance)


def test_a_report_equals_the_record_in_docs() -> None:
    name = "stream_cpu_20261123"
    check_equals(summary_json(rebuilt(name)), content_of(name))

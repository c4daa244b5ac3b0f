from dataclasses import replace
from pathlib import Path

import pytest

from steadynorm.lab.analysis import spread
from steadynorm.lab.chance import chance_of
from steadynorm.lab.records import CellRecord, Measurement, Record, RunRecord
from steadynorm.lab.report.document import Expectation
from steadynorm.lab.report.stream.document import make_report
from steadynorm.lab.report.stream.expectations import expectations
from steadynorm.lab.report.stream.summary import default_runs, singles, ways
from tests.support.records import check_page
from tests.support.records import record as compare_record
from tests.support.records import run as compare_run

METHODS = ["stored", "batch", "gated", "gate"]


def default(accuracy: float, *, seed: int = 0) -> RunRecord:
    return compare_run("batch_norm", val_accuracy=[accuracy / 2, accuracy], seed=seed)


def single(arm: str, accuracy: float | None, *, seed: int = 0) -> RunRecord:
    """A run at batch size 1 that ended at an accuracy, or diverged at step 17."""
    lost = {"status": "diverged", "diverged_at_step": 17} if accuracy is None else {}
    values = [] if accuracy is None else [accuracy / 2, accuracy]
    made = compare_run(arm, val_accuracy=values, seed=seed, lr=0.1 / 128, planned=2, **lost)
    return replace(made, spec=replace(made.spec, batch_size=1))


def recalibrated(arm: str, accuracy: float, *, seed: int = 0) -> CellRecord:
    rows = (Measurement(quantity="accuracy", value=accuracy),)
    return CellRecord(factors={"part": "recalibrated", "arm": arm, "seed": seed}, measurements=rows, seconds=1.0)


def streamed(order: str, *accuracies: float, seed: int = 0) -> CellRecord:
    rows = tuple(
        Measurement(subject=method, quantity="accuracy", value=value)
        for method, value in zip(METHODS, accuracies, strict=True)
    )
    return CellRecord(factors={"part": "stream", "order": order, "seed": seed}, measurements=rows, seconds=1.0)


def stream_record(runs: list[RunRecord], cells: list[CellRecord], **changes: object) -> Record:
    config = {"arms": ["gated_batch_norm", "batch_norm"], "methods": METHODS, "stream_images": 100, "epochs": 2}
    made = compare_record(runs, **(config | changes))
    return replace(made, experiment="stream", cells=tuple(cells))


def two_seeds(defaults: tuple[float, float], gated: tuple[float, float]) -> Record:
    runs = [default(value, seed=seed) for seed, value in enumerate(defaults)]
    runs += [single("gated_batch_norm", value, seed=seed) for seed, value in enumerate(gated)]
    return stream_record(runs, [], arms=["gated_batch_norm"], seeds=[0, 1])


RUNS = [default(0.7), single("gated_batch_norm", 0.6), single("batch_norm", 0.2)]
CELLS = [
    recalibrated("gated_batch_norm", 0.61),
    recalibrated("batch_norm", 0.55),
    streamed("iid", 0.7, 0.3, 0.69, 0.698),
    streamed("class_ordered", 0.7, 0.3, 0.6, 0.68),
]


def judged(made: Record) -> tuple[Expectation, ...]:
    default = spread(run.epochs[-1].val_accuracy for run in default_runs(made).finished)
    return expectations(singles(made), ways(made), default, chance_of(made))


def verdicts(made: Record) -> list[str]:
    return [item.verdict for item in judged(made)]


def test_drops_are_held_against_the_same_seed() -> None:
    seeds = [
        default(0.7),
        default(0.8, seed=1),
        single("gated_batch_norm", 0.6),
        single("gated_batch_norm", 0.5, seed=1),
    ]
    (gated,) = singles(stream_record(seeds, [], arms=["gated_batch_norm"], seeds=[0, 1]))
    assert (gated.drop.mean, gated.drop.low, gated.drop.high) == pytest.approx((0.2, 0.1, 0.3))


def test_the_headline_says_what_both_lose() -> None:
    report = make_report(stream_record(RUNS, CELLS))
    lost = "At batch size 1 gated batch norm loses 10.0 points on CIFAR-10; plain batch norm loses 50.0 points"
    assert report.headline.replace("\N{NO-BREAK SPACE}", " ") == lost
    assert report.finished


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


def test_the_worst_seed_decides() -> None:
    seeds = [
        default(0.7),
        default(0.7, seed=1),
        single("gated_batch_norm", 0.69),
        single("gated_batch_norm", 0.5, seed=1),
    ]
    found = make_report(stream_record(seeds, [], arms=["gated_batch_norm"], seeds=[0, 1])).expectations[0]
    assert found.verdict == "not met"
    assert "5.0\N{NO-BREAK SPACE}points beyond" in found.measured


def test_a_default_build_near_chance_cannot_lose_so_much() -> None:
    runs = [default(0.24), single("gated_batch_norm", 0.2), RUNS[2]]
    assert verdicts(stream_record(runs, CELLS))[0] == "not measured"


def test_statistics_are_not_blamed_for_what_weights_lost() -> None:
    cells = [CELLS[0], recalibrated("batch_norm", 0.3), *CELLS[2:]]
    assert verdicts(stream_record(RUNS, cells))[3] == "not met"


def test_ways_are_held_against_stored_ones_on_the_same_images() -> None:
    found = {(way.method, way.order): way.gain.mean for way in ways(stream_record(RUNS, CELLS))}
    assert found["batch", "iid"] == pytest.approx(-0.4)
    assert found["gate", "class_ordered"] == pytest.approx(-0.02)
    assert found["stored", "iid"] == 0


@pytest.mark.parametrize(
    "made",
    [
        stream_record([], []),
        stream_record(RUNS, CELLS),
        stream_record([replace(one, status="waiting", epochs=()) for one in RUNS], []),
        stream_record(RUNS, [replace(cell, measurements=(), seconds=None) for cell in CELLS]),
        stream_record([RUNS[0], single("gated_batch_norm", None), single("batch_norm", None)], CELLS[2:]),
        stream_record(RUNS, CELLS[:2], arms=["batch_norm"], methods=["batch"]),
    ],
    ids=["empty", "whole", "waiting", "no cells yet", "all diverged", "other arms"],
)
def test_every_record_makes_a_page(made: Record, tmp_path: Path) -> None:
    check_page(made, tmp_path)


def test_a_default_build_that_may_be_guessing_decides_nothing() -> None:
    runs = [default(0.105), single("gated_batch_norm", 0.104), single("batch_norm", 0.1)]
    report = make_report(stream_record(runs, CELLS))
    assert {item.verdict for item in report.expectations} == {"not measured", "not measured: at chance"}
    assert report.headline.startswith("The default build is no better than guessing (10.5")


def test_of_two_arms_both_have_to_fail_to_decide_nothing() -> None:
    both = [default(0.7), single("gated_batch_norm", 0.11), single("batch_norm", 0.1)]
    assert verdicts(stream_record(both, CELLS))[2] == "not measured: at chance"
    one = [default(0.7), single("gated_batch_norm", 0.5), single("batch_norm", 0.1)]
    assert verdicts(stream_record(one, CELLS))[2] == "met"

"""What the report of a sweep says, from made-up numbers."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from steadynorm.lab.experiments import sweep
from steadynorm.lab.experiments.sweep import describe, grid_points, rate_limits
from steadynorm.lab.training import network
from steadynorm.reporting.records import Cell, Record
from steadynorm.reporting.report import Report, Table
from tests.support.documented import check_equals, content_of, record_of
from tests.support.records import check_page, summary_json, with_factors
from tests.support.records import record as compare_record
from tests.support.records import run as compare_run


def trained(arm: str, lr: float, accuracy: float | None, *, seed: int = 0, depth: int = 6, loss: float = 1.0):
    """A run that ended at an accuracy, or exploded at step 17."""
    values = [] if accuracy is None else [accuracy / 2, accuracy]
    made = compare_run(
        arm,
        val_accuracy=values,
        status="diverged" if accuracy is None else "finished",
        diverged_at_step=17 if accuracy is None else None,
        lr=lr,
        seed=seed,
        planned=2,
        change=lambda _: {"train_loss": loss},
    )
    return with_factors(made, batch_size=64, depth=depth)


def searched(arm: str, lr: float, loss: float, *, seed: int = 0, depth: int = 6) -> Cell:
    made = trained(arm, lr, 0.2, seed=seed, depth=depth, loss=loss)
    return with_factors(made, purpose="stability")


def searches(limits: dict[tuple[str, int], float], *, depth: int = 6) -> list[Cell]:
    """Runs of searches that are over: arm and seed -> the largest rate that trains."""
    return [
        searched(arm, lr, 1.0 if lr <= limit else 5.0, seed=seed, depth=depth)
        for (arm, seed), limit in limits.items()
        for lr in (limit, limit * 1.4)
    ]


def sweep_record(*runs: Cell, **changes: object) -> Record:
    config = {"lr": [0.1, 0.5], "batch_size": [64], "depth": [6], "largest_rate": False, "epochs": 2} | changes
    return replace(compare_record(runs, **config), experiment="sweep")


GRID = (
    trained("batch_norm", 0.1, 0.6),
    trained("batch_norm", 0.5, 0.5),
    trained("none", 0.1, 0.55),
    trained("none", 0.5, None),
)
APART = {("batch_norm", 0): 1.6, ("batch_norm", 1): 0.4, ("none", 0): 0.1, ("none", 1): 0.1}
OVERLAPPING = {("batch_norm", 0): 1.6, ("batch_norm", 1): 0.1, ("none", 0): 0.4, ("none", 1): 0.1}
WHOLE = sweep_record(*GRID, *searches(APART), largest_rate=True, seeds=[0, 1])


def verdicts(made: Record) -> list[str]:
    return [item.verdict for item in describe(made).claims]


def headline(*runs: Cell, **changes: object) -> str:
    return describe(sweep_record(*runs, **changes)).headline


def tables(report: Report) -> dict[str, Table]:
    """The page's tables by the titles of their sections."""
    return {part.title: block for part in report.sections for block in part.shown if isinstance(block, Table)}


def test_the_report_equals_the_record_in_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    content = content_of("sweep_cpu_20261123")
    # At the time of that record the loss alone decided whether a rate trains.
    monkeypatch.setattr(sweep, "chance_in_search", lambda *_: SimpleNamespace(is_beaten=lambda _: True))
    found = summary_json(record_of(content))
    check_equals(found, content)
    assert found["expectations"] == content["expectations"]
    assert found["headline"] == "Training explodes from rate 0.5 on without normalization, nowhere with batch norm"


def test_the_headline_names_the_rate_that_explodes() -> None:
    assert headline(*GRID) == "Training explodes from rate 0.5 on without normalization, nowhere with batch norm"
    assert describe(sweep_record(*GRID)).finished


def test_the_headline_names_the_smallest_rate_that_explodes() -> None:
    lost = [trained("none", 0.1, None, depth=12), trained("batch_norm", 0.5, None)]
    found = headline(*GRID[:1], *GRID[2:], *lost, depth=[6, 12])
    assert found == "Training explodes from rate 0.1 on without normalization"


def test_the_headline_counts_normalizations_whose_names_are_too_long_for_it() -> None:
    steady = ["self_tuned_batch_norm", "torch_batch_norm", "instance_norm"]
    runs = [trained(arm, 0.1, 0.5) for arm in steady]
    found = headline(*runs, trained("gated_batch_norm", 0.1, None), arms=[*steady, "gated_batch_norm"], lr=[0.1])
    assert found == "Training explodes from rate 0.1 on with gated batch norm, nowhere with 3 others"


def test_where_nothing_explodes_the_headline_says_so() -> None:
    calm = [trained(arm, rate, 0.5) for arm in ("batch_norm", "none") for rate in (0.1, 0.5)]
    assert headline(*calm) == "Nothing explodes up to rate 0.5 on CIFAR-10"
    assert verdicts(sweep_record(*calm))[0] == "not met"


def test_the_articles_expectation_is_met_where_only_the_plain_network_explodes() -> None:
    assert verdicts(sweep_record(*GRID)) == ["met", "not measured", "met"]


def test_a_verdict_comes_with_its_numbers() -> None:
    first, second, third = (item.measured.replace("\N{NO-BREAK SPACE}", " ") for item in describe(WHOLE).claims)
    assert first == "Exploded: 1 of 2 networks without, 0 of 2 with batch norm."
    assert second == "6 convolutions, batch 64: 0.800 with, 0.100 without."
    assert third == "6 convolutions, batch 64: 60.0 % at 0.1 with, 55.0 % at 0.1 without (5.0 points)."


def test_an_exploding_batch_norm_breaks_the_expectation() -> None:
    broken = (*GRID[:1], trained("batch_norm", 0.5, None), *GRID[2:])
    assert verdicts(sweep_record(*broken))[0] == "not met"


def test_waiting_networks_leave_it_open() -> None:
    waiting = replace(GRID[1], status="waiting", measurements=())
    waits = sweep_record(GRID[0], waiting, *GRID[2:])
    assert verdicts(waits)[0] == "not measured"
    assert not describe(waits).finished


def test_seeds_that_overlap_do_not_decide_the_best_rate() -> None:
    seeds = [
        trained(arm, 0.1, value, seed=seed)
        for arm, values in (("batch_norm", (0.5, 0.6)), ("none", (0.45, 0.55)))
        for seed, value in enumerate(values)
    ]
    assert verdicts(sweep_record(*seeds, lr=[0.1], seeds=[0, 1]))[2] == "not met"


def test_batch_norm_has_to_be_ahead_at_every_depth() -> None:
    deeper = [trained("batch_norm", 0.1, 0.4, depth=12), trained("none", 0.1, 0.5, depth=12)]
    assert verdicts(sweep_record(GRID[0], GRID[2], *deeper, lr=[0.1], depth=[6, 12]))[2] == "not met"


def test_a_point_counts_explosions_and_guessing() -> None:
    runs = [trained("none", 0.1, None), trained("none", 0.1, 0.1, seed=1, loss=2.4)]
    runs += [trained("none", 0.1, 0.4, seed=seed) for seed in (2, 3)]
    made = sweep_record(*runs, arms=["none"], lr=[0.1], seeds=[0, 1, 2, 3])
    (point,) = grid_points(made)
    assert (point.diverged_at_step, point.values["guessing"].count(1), point.waiting, point.seeds) == ((17,), 1, 0, 4)
    assert (point["accuracy"].mean, point["accuracy"].n) == (pytest.approx(0.3), 3)
    (row,) = describe(made).table.rows
    assert row[-1].text == "1 of 4 exploded at step 17, 1 of 4 at chance" and row[-1].tone == "bad"


WAITING, RUNNING = (replace(GRID[2], status=status, measurements=()) for status in ("waiting", "running"))
SEEDS = [trained("none", 0.1, 0.4, seed=seed) for seed in (1, 2)]


@pytest.mark.parametrize(
    ("runs", "text", "tone"),
    [
        ([trained("none", 0.1, 0.4)], "trained", ""),
        ([trained("none", 0.1, 0.4, loss=2.4)], "not surely above chance", "bad"),
        ([trained("none", 0.1, None)], "exploded at step 17", "bad"),
        ([RUNNING], "waiting", ""),
        ([WAITING, *SEEDS], "1 of 3 waiting", ""),
        ([RUNNING, *SEEDS], "1 of 3 waiting", ""),
        ([], "waiting", ""),
    ],
)
def test_the_outcome_of_a_point(runs: list[Cell], text: str, tone: str) -> None:
    (row,) = describe(sweep_record(*runs, arms=["none"], lr=[0.1])).table.rows
    assert (row[-1].text, row[-1].tone) == (text, tone)


@pytest.mark.parametrize("runs", [(), (*GRID[:2], RUNNING, GRID[3])], ids=["none", "running"])
def test_networks_that_have_not_ended_are_not_finished(runs: tuple[Cell, ...]) -> None:
    assert not describe(sweep_record(*runs)).finished


def test_a_single_seed_is_named_as_such() -> None:
    notes = [describe(sweep_record(seeds=seeds)).sections[0].shown[-1].text for seeds in ([0], [0, 1])]
    assert notes[0].startswith("There is one seed") and notes[1].startswith("Spreads are the standard deviation")


def test_the_largest_rates_are_compared_seed_by_seed() -> None:
    made = sweep_record(*GRID, *searches(APART), largest_rate=True, seeds=[0, 1])
    batch, plain = rate_limits(made)
    assert (batch.rates, plain.rates) == ((1.6, 0.4), (0.1, 0.1))
    assert batch.mean == pytest.approx(0.8)
    claim = describe(made).claims[1]
    assert (claim.verdict, "0.800 with, 0.100 without" in claim.measured) == ("met", True)


def test_largest_rates_that_overlap_between_the_seeds_decide_nothing() -> None:
    assert verdicts(sweep_record(*GRID, *searches(OVERLAPPING), largest_rate=True, seeds=[0, 1]))[1] == "not met"


def test_a_search_that_is_not_over_is_not_finished() -> None:
    made = sweep_record(*GRID, searched("batch_norm", 0.1, 1.0), searched("none", 0.1, 1.0), largest_rate=True)
    assert not describe(made).finished
    assert math.isnan(rate_limits(made)[0].mean)


def test_a_search_that_lacks_a_seed_is_not_finished() -> None:
    whole = searches(APART)
    assert describe(sweep_record(*GRID, *whole, largest_rate=True, seeds=[0, 1])).finished
    assert not describe(sweep_record(*GRID, *whole[:-2], largest_rate=True, seeds=[0, 1])).finished


def test_accuracy_is_drawn_over_the_rate_with_a_cross_where_a_run_exploded() -> None:
    figure, _ = describe(WHOLE).figures
    known = [(row["arm"], row["learning rate"], row["accuracy"]) for row in figure.data if row["accuracy"] > 0]
    assert known == [("batch norm", 0.1, 0.6), ("batch norm", 0.5, 0.5), ("no normalization", 0.1, 0.55)]
    (cross,) = figure.marks["crosses"]
    assert (cross["arm"], cross["learning rate"]) == ("no normalization", 0.5) and math.isnan(cross["accuracy"])
    assert "A cross at the foot" in figure.caption


def test_there_is_a_figure_for_every_depth_at_which_a_run_has_ended() -> None:
    waiting = [replace(with_factors(one, depth=18), status="waiting", measurements=()) for one in GRID]
    deeper = [with_factors(one, depth=12) for one in GRID]
    report = describe(sweep_record(*GRID, *deeper, *waiting, depth=[6, 12, 18]))
    assert [figure.name for figure in report.figures] == ["accuracy_depth6_batch64", "accuracy_depth12_batch64"]


def test_the_largest_rate_is_drawn_over_the_depth_as_a_geometric_mean_beside_its_seeds() -> None:
    deeper = searches({place: limit / 2 for place, limit in APART.items()}, depth=12)
    made = sweep_record(*GRID, *searches(APART), *deeper, largest_rate=True, seeds=[0, 1], depth=[6, 12])
    figure = describe(made).figures[-1]
    means = [(row["arm"], row["convolutions"], row["rate"]) for row in figure.data]
    assert means == [
        ("batch norm", 6, pytest.approx(0.8)),
        ("no normalization", 6, pytest.approx(0.1)),
        ("batch norm", 12, pytest.approx(0.4)),
        ("no normalization", 12, pytest.approx(0.05)),
    ]
    assert [(row["low"], row["high"]) for row in figure.data] == [(0.4, 1.6), (0.1, 0.1), (0.2, 0.8), (0.05, 0.05)]
    assert [row["rate"] for row in figure.marks["rings"]] == [1.6, 0.4, 0.1, 0.1, 0.8, 0.2, 0.05, 0.05]


def test_explosions_alone_are_drawn() -> None:
    (figure,) = describe(sweep_record(trained("none", 0.1, None), arms=["none"], lr=[0.1])).figures
    assert len(figure.marks["crosses"]) == 1


def test_a_search_that_is_not_over_is_not_drawn() -> None:
    deeper = [searched("batch_norm", 0.1, 1.0, depth=12), searched("none", 0.1, 1.0, depth=12)]
    made = sweep_record(*GRID, *searches(APART), *deeper, largest_rate=True, seeds=[0, 1], depth=[6, 12])
    assert [row["convolutions"] for row in describe(made).figures[-1].data] == [6, 6]


def test_the_search_is_described_where_there_was_one() -> None:
    assert "largest rate" in describe(WHOLE).method[-1]
    assert not any("largest rate" in text for text in describe(sweep_record(*GRID)).method)


def test_ticks_stand_at_the_rates_that_are_drawn() -> None:
    waiting = [replace(one, status="waiting", measurements=()) for one in GRID[1:]]
    (figure,) = describe(sweep_record(GRID[0], *waiting)).figures
    assert figure.options["x_values"] == [0.1]


def test_the_figure_comes_before_the_table() -> None:
    result, *_ = describe(WHOLE).sections
    assert [block.kind for block in result.shown] == ["figures", "table", "text"]


def test_a_long_table_is_at_the_end() -> None:
    rates = [0.1 * 2**power for power in range(7)]
    report = describe(sweep_record(*(trained("none", rate, 0.5) for rate in rates), lr=rates))
    assert list(tables(report)) == ["Every normalization and rate"]
    assert [block.kind for block in report.sections[-1].shown] == ["table", "text"]
    assert len(tables(report)["Every normalization and rate"].rows) == 14


def test_the_table_of_largest_rates_shows_every_seed() -> None:
    rows = [[cell.text for cell in row] for row in tables(describe(WHOLE))["The largest rate that trains"].rows]
    assert rows == [
        ["Batch norm", "6", "64", "0.800", "1.60, 2.24; 0.400, 0.560"],
        ["No normalization", "6", "64", "0.100", "0.100, 0.140; 0.100, 0.140"],
    ]


@pytest.mark.parametrize(
    "made",
    [
        sweep_record(),
        WHOLE,
        sweep_record(*GRID, searched("none", 0.1, 1.0), searched("none", 0.14, 3.0), largest_rate=True),
        sweep_record(*(replace(one, status="waiting", measurements=()) for one in GRID), largest_rate=True),
        sweep_record(trained("none", 0.1, None), arms=["none"], lr=[0.1]),
        sweep_record(trained("none", 0.1, math.nan), arms=["none"], lr=[0.1]),
    ],
    ids=["empty", "whole", "searched", "waiting", "only explosions", "no number"],
)
def test_every_record_makes_a_page(made: Record, tmp_path: Path) -> None:
    check_page(made, tmp_path)


def test_a_run_names_its_point() -> None:
    factors = network(arm="none", seed=1, lr=0.1, epochs=2, batch_size=64, depth=6, purpose="stability")
    assert Cell(factors=factors).name == "stability-none-lr0.1-batch64-depth6-seed1"


def test_a_network_at_chance_has_not_trained_whatever_its_loss() -> None:
    found = describe(sweep_record(trained("none", 0.1, 0.105), trained("none", 0.5, 0.15), arms=["none"]))
    assert [row[-1].text for row in found.table.rows] == ["not surely above chance", "trained"]


def test_arms_that_learn_at_no_rate_decide_nothing() -> None:
    stuck = [trained("batch_norm", rate, 0.105) for rate in (0.1, 0.5)]
    made = sweep_record(*stuck, *GRID[2:])
    assert verdicts(made) == ["not measured: at chance", "not measured", "not measured: at chance"]
    failed = [trained(arm, rate, 0.105) for arm in ("batch_norm", "none") for rate in (0.1, 0.5)]
    assert headline(*failed) == "No network is surely better than guessing, up to rate 0.5"


def test_arms_that_learn_at_one_depth_are_judged() -> None:
    deeper = [trained(arm, rate, 0.105, depth=12) for arm in ("batch_norm", "none") for rate in (0.1, 0.5)]
    assert verdicts(sweep_record(*GRID, *deeper, depth=[6, 12]))[0] == "met"


def test_a_network_that_explodes_beside_one_at_chance_is_told() -> None:
    runs = [trained("none", 0.1, None), trained("none", 0.1, 0.105, seed=1)]
    found = headline(*runs, arms=["none"], lr=[0.1], seeds=[0, 1])
    assert found == "Training explodes from rate 0.1 on without normalization"

import math
from dataclasses import replace
from pathlib import Path

import pytest

from steadynorm.lab.chance import chance_of
from steadynorm.lab.records import Record, RunRecord, RunSpec
from steadynorm.lab.report.document import Expectation
from steadynorm.lab.report.sweep.document import make_report
from steadynorm.lab.report.sweep.expectations import expectations
from steadynorm.lab.report.sweep.summary import borders, geometric_mean, is_finished, places
from tests.support.records import check_page
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
    return replace(made, spec=replace(made.spec, batch_size=64, depth=depth))


def searched(arm: str, lr: float, loss: float, *, seed: int = 0) -> RunRecord:
    made = trained(arm, lr, 0.2, seed=seed, loss=loss)
    return replace(made, spec=replace(made.spec, purpose="stability"))


def sweep_record(*runs: RunRecord, **changes: object) -> Record:
    config = {"lr": [0.1, 0.5], "batch_size": [64], "depth": [6], "largest_rate": False, "epochs": 2} | changes
    return replace(compare_record(runs, **config), experiment="sweep")


GRID = (
    trained("batch_norm", 0.1, 0.6),
    trained("batch_norm", 0.5, 0.5),
    trained("none", 0.1, 0.55),
    trained("none", 0.5, None),
)


def judged(made: Record) -> tuple[Expectation, ...]:
    return expectations(places(made), borders(made), chance_of(made))


def verdicts(made: Record) -> list[str]:
    return [item.verdict for item in judged(made)]


def test_the_headline_names_the_rate_that_explodes() -> None:
    report = make_report(sweep_record(*GRID))
    assert report.headline == (
        "Training without normalization explodes from rate 0.5 on, at 6 convolutions; with batch norm nowhere"
    )
    assert report.finished


def test_where_nothing_explodes_the_headline_says_so() -> None:
    calm = [trained(arm, rate, 0.5) for arm in ("batch_norm", "none") for rate in (0.1, 0.5)]
    assert make_report(sweep_record(*calm)).headline == "Nothing explodes up to rate 0.5 on CIFAR-10"
    assert verdicts(sweep_record(*calm))[0] == "not met"


def test_the_articles_expectation_is_met_where_only_the_plain_network_explodes() -> None:
    assert verdicts(sweep_record(*GRID)) == ["met", "not measured", "met"]


def test_an_exploding_batch_norm_breaks_the_expectation() -> None:
    broken = (*GRID[:1], trained("batch_norm", 0.5, None), *GRID[2:])
    assert verdicts(sweep_record(*broken))[0] == "not met"


def test_waiting_networks_leave_it_open() -> None:
    waiting = replace(GRID[1], status="waiting", epochs=())
    waits = sweep_record(GRID[0], waiting, *GRID[2:])
    assert verdicts(waits)[0] == "not measured"
    assert not is_finished(waits)


def test_seeds_that_overlap_do_not_decide_the_best_rate() -> None:
    seeds = [
        trained(arm, 0.1, value, seed=seed)
        for arm, values in (("batch_norm", (0.5, 0.6)), ("none", (0.45, 0.55)))
        for seed, value in enumerate(values)
    ]
    assert verdicts(sweep_record(*seeds, lr=[0.1], seeds=[0, 1]))[2] == "not met"


def test_a_place_counts_explosions_and_guessing() -> None:
    runs = [trained("none", 0.1, None), trained("none", 0.1, 0.1, seed=1, loss=2.4)]
    runs += [trained("none", 0.1, 0.4, seed=seed) for seed in (2, 3)]
    (place,) = places(sweep_record(*runs, arms=["none"], lr=[0.1], seeds=[0, 1, 2, 3]))
    assert (place.exploded_at_step, place.guessing, place.waiting, place.seeds) == ((17,), 1, 0, 4)
    assert (place.accuracy.mean, place.accuracy.n) == (pytest.approx(0.3), 3)


def test_the_largest_rates_are_compared_seed_by_seed() -> None:
    runs = [
        searched(arm, rate, 1.0 if rate <= border else 5.0, seed=seed)
        for arm, seed, border in (("batch_norm", 0, 1.6), ("batch_norm", 1, 0.4), ("none", 0, 0.1), ("none", 1, 0.1))
        for rate in (border, border * 1.4)
    ]
    made = sweep_record(*GRID, *runs, largest_rate=True, seeds=[0, 1])
    batch, plain = borders(made)
    assert (batch.rates, plain.rates) == ((1.6, 0.4), (0.1, 0.1))
    assert geometric_mean(batch.rates) == pytest.approx(0.8)
    expectation = judged(made)[1]
    assert (expectation.verdict, "0.800 with, 0.100 without" in expectation.measured) == ("met", True)


def test_largest_rates_that_overlap_between_the_seeds_decide_nothing() -> None:
    runs = [
        searched(arm, rate, 1.0 if rate <= border else 5.0, seed=seed)
        for arm, seed, border in (("batch_norm", 0, 1.6), ("batch_norm", 1, 0.1), ("none", 0, 0.4), ("none", 1, 0.1))
        for rate in (border, border * 1.4)
    ]
    assert verdicts(sweep_record(*GRID, *runs, largest_rate=True, seeds=[0, 1]))[1] == "not met"


def test_a_search_that_is_not_over_is_not_finished() -> None:
    made = sweep_record(*GRID, searched("batch_norm", 0.1, 1.0), searched("none", 0.1, 1.0), largest_rate=True)
    assert not is_finished(made)
    assert math.isnan(geometric_mean(borders(made)[0].rates))


@pytest.mark.parametrize(
    "made",
    [
        sweep_record(),
        sweep_record(*GRID),
        sweep_record(*GRID, searched("none", 0.1, 1.0), searched("none", 0.14, 3.0), largest_rate=True),
        sweep_record(*(replace(one, status="waiting", epochs=()) for one in GRID), largest_rate=True),
        sweep_record(trained("none", 0.1, None), arms=["none"], lr=[0.1]),
        sweep_record(trained("none", 0.1, math.nan), arms=["none"], lr=[0.1]),
    ],
    ids=["empty", "whole", "searched", "waiting", "only explosions", "no number"],
)
def test_every_record_makes_a_page(made: Record, tmp_path: Path) -> None:
    check_page(made, tmp_path)


def test_a_run_names_its_place() -> None:
    spec = RunSpec(arm="none", seed=1, lr=0.1, epochs=2, batch_size=64, depth=6, purpose="stability")
    assert spec.name == "stability-none-lr0.1-batch64-depth6-seed1"


def test_a_network_at_chance_has_not_trained_whatever_its_loss() -> None:
    found = make_report(sweep_record(trained("none", 0.1, 0.105), trained("none", 0.5, 0.15), arms=["none"]))
    assert [row[-1].text for row in found.table.rows] == ["no better than chance", "trained"]


def test_arms_that_learn_at_no_rate_decide_nothing() -> None:
    stuck = [trained("batch_norm", rate, 0.105) for rate in (0.1, 0.5)]
    made = sweep_record(*stuck, *GRID[2:])
    assert verdicts(made) == ["not measured: at chance", "not measured", "not measured: at chance"]
    failed = [trained(arm, rate, 0.105) for arm in ("batch_norm", "none") for rate in (0.1, 0.5)]
    assert make_report(sweep_record(*failed)).headline == "No network is better than guessing, up to rate 0.5"

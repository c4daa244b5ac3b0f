"""The papers' expectations against measured numbers."""

import pytest

from steadynorm.lab.analysis import Spread
from steadynorm.lab.chance import chance_of
from steadynorm.lab.report.landscape.courses import courses
from steadynorm.lab.report.landscape.expectations import expectations, times
from tests.support.landscape import cell, made

LOSS, CHANGE, ORDERS, BETA, FREE_LOSS, FREE_CHANGE, FREE_BETA, GRADIENT, RAISED, FREE_RAISED, AS_WELL, BETTER = range(
    12
)


def judged(*cells, **changes):
    record = made(cells, **changes)
    return expectations(courses(record), chance_of(record))


def arms(batch, none, *, noisy=0.5):
    return judged(
        cell("batch_norm", change=lambda step: batch),
        cell("noisy_batch_norm", accuracy=(0.3, noisy)),
        cell("none", change=lambda step: none, accuracy=(0.3, 0.4)),
    )


def test_a_rougher_loss_without_normalization_is_what_the_paper_expects() -> None:
    found = arms({"beta": 1.0, "g": 1.0}, {"beta": 30.0, "g": 3.0})
    assert [item.verdict for item in found] == ["met"] * 12
    assert "90.0 times as much" in found[CHANGE].measured


def test_a_smoother_loss_without_normalization_is_not() -> None:
    found = arms({"beta": 30.0, "g": 3.0}, {"beta": 1.0, "g": 1.0})
    assert {item.verdict for item in found[:AS_WELL]} == {"not met"}


def test_a_larger_scale_of_the_weights_alone_changes_the_papers_view_and_not_the_other() -> None:
    found = arms({"beta": 0.03, "g": 0.1, "w": 200.0 * 1.001}, {"beta": 3.0, "g": 1.0, "w": 20.0})
    assert [found[claim].verdict for claim in (LOSS, CHANGE, ORDERS, BETA)] == ["met"] * 4
    assert "1.00 times as much" in found[FREE_LOSS].measured
    assert [found[claim].verdict for claim in (FREE_CHANGE, FREE_BETA)] == ["not met"] * 2


@pytest.mark.parametrize(("beta", "verdict"), [(29.0, "not met"), (31.0, "met")])
def test_almost_two_orders_of_magnitude_are_thirty_times(beta, verdict) -> None:
    assert arms({"beta": 1.0}, {"beta": beta})[ORDERS].verdict == verdict


@pytest.mark.parametrize(
    ("noisy", "as_well", "better"), [(0.49, "met", "met"), (0.47, "not met", "met"), (0.39, "not met", "not met")]
)
def test_noise_may_cost_two_points(noisy, as_well, better) -> None:
    found = arms({}, {}, noisy=noisy)
    assert [found[claim].verdict for claim in (AS_WELL, BETTER)] == [as_well, better]


def test_how_often_a_step_raises_the_loss_is_judged_where_batch_norm_never_does() -> None:
    found = arms({"beta": 1.0}, {"beta": 30.0})
    expected = "At 0.0 % of the looks with batch norm, at 100.0 % without."
    for claim in (RAISED, FREE_RAISED):
        assert found[claim].measured.replace("\N{NO-BREAK SPACE}", " ") == expected
    assert arms({}, {})[RAISED].verdict == "not met"


def test_seeds_that_disagree_are_told() -> None:
    cells = [cell("batch_norm", seed) for seed in (0, 1)]
    cells += [cell("none", seed, change=lambda step, b=beta: {"beta": b}) for seed, beta in ((0, 2.0), (1, 6.0))]
    found = judged(*cells)[BETA]
    assert found.verdict == "met"
    assert found.measured.endswith("1.33 times as much, from 0.667 to 2.00 over the seeds. The seeds disagree.")


def test_what_is_missing_is_not_measured() -> None:
    assert {item.verdict for item in judged(cell("batch_norm"))} == {"not measured"}
    assert {item.verdict for item in judged()} == {"not measured"}


def test_an_arm_that_diverged_is_told() -> None:
    lost = cell("noisy_batch_norm", accuracy=(), diverged_at=3)
    found = judged(cell("batch_norm"), lost, cell("none"))
    assert (found[AS_WELL].verdict, found[AS_WELL].measured) == ("not measured", "Noisy batch norm diverged.")
    assert found[LOSS].verdict == "not met"


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        ((4.0, 4.0, 1), "4.0 times less"),
        ((0.25, 0.25, 1), "4.0 times more"),
        ((0.9, 1.3, 2), "about as much"),
        ((1.1, 1.3, 2), "1.2 times less"),
    ],
)
def test_how_many_times(factor, words) -> None:
    low, high, n = factor
    assert times(Spread(mean=(low + high) / 2, low=low, high=high, n=n, sd=None)) == words


def test_networks_that_may_be_guessing_decide_nothing() -> None:
    found = judged(
        cell("batch_norm"),
        cell("noisy_batch_norm"),
        cell("none", accuracy=(0.1, 0.105), change=lambda _: {"beta": 9.0}),
    )
    verdicts = [item.verdict for item in found]
    assert verdicts == ["not measured: at chance"] * 10 + ["met", "not measured: at chance"]

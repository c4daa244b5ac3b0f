import math
from dataclasses import replace

import pytest

from steadynorm.lab.stability import bracket, next_rate, trains, tried_rates
from steadynorm.lab.training import network
from steadynorm.reporting.chance import Chance
from steadynorm.reporting.records import Cell
from tests.support.records import EPOCH, rows_of


def search(border: float) -> dict[float, bool]:
    """Try what the search asks for until it ends; rates up to the border train."""
    tried: dict[float, bool] = {}
    while (rate := next_rate(tried)) is not None:
        assert rate not in tried
        tried[rate] = rate <= border
    return tried


@pytest.mark.parametrize("border", [3e-5, 0.0123, 0.1, 0.4, 7.0, 900.0])
def test_the_search_ends_within_a_factor_of_one_and_a_half_of_the_border(border: float) -> None:
    tried = search(border)
    found = bracket(tried)
    assert found.trains <= border < found.fails <= 1.5 * found.trains
    assert len(tried) <= 11


@pytest.mark.parametrize("border", [0.0, math.inf])
def test_a_search_without_a_border_ends_too(border: float) -> None:
    found = bracket(search(border))
    assert found.is_close
    assert (found.trains is None, found.fails is None) == (border == 0, border > 0)


def test_rates_are_short_numbers() -> None:
    assert all(rate == float(f"{rate:.3g}") for rate in search(0.03))


def test_a_rate_above_one_that_fails_does_not_count() -> None:
    found = bracket({0.1: True, 0.2: False, 0.4: True})
    assert (found.trains, found.fails) == (0.1, 0.2)


def ended(train_loss: float, *, lr: float = 0.1, accuracy: float = 1 / 3) -> Cell:
    factors = network(arm="none", seed=0, lr=lr, epochs=1)
    rows = rows_of(1, EPOCH | {"train_loss": train_loss, "train_accuracy": accuracy})
    return Cell(factors=factors, status="finished", measurements=tuple(rows))


def test_a_run_trains_where_its_loss_is_below_that_of_guessing() -> None:
    chance = Chance(share=0.1, images=3_200)
    assert trains(ended(2.30), guessing=math.log(10), chance=chance)  # ln 10 = 2.3026
    assert not trains(ended(2.31), guessing=math.log(10), chance=chance)
    assert not trains(ended(math.nan), guessing=math.log(10), chance=chance)
    assert trains(ended(2.31), guessing=math.log(11), chance=chance)


def test_a_run_that_may_be_guessing_does_not_train_whatever_its_loss() -> None:
    assert not trains(ended(2.30, accuracy=0.109), guessing=math.log(10), chance=Chance(share=0.1, images=3_200))


def test_a_diverged_run_does_not_train_and_a_running_one_says_nothing() -> None:
    runs = (
        replace(ended(1.0, lr=1.0), status="diverged"),
        replace(ended(1.0, lr=0.5), status="running"),
        ended(1.0, lr=0.25),
    )
    assert tried_rates(runs, guessing=math.log(10), chance=Chance(share=0.1, images=3_200)) == {1.0: False, 0.25: True}

"""Numbers of looks around, against a quadratic loss's closed forms and hand calculation."""

import math

import pytest

from steadynorm.lab.records import CellRecord, Measurement
from steadynorm.lab.report.landscape.courses import course_of, courses
from steadynorm.lab.report.landscape.measures import find_quantity, over_looks, ratio
from tests.support.landscape import cell, made


def median(quantity, **numbers):
    (arm, *_) = courses(made([cell("batch_norm", change=lambda step: numbers)]))
    found = over_looks(arm, find_quantity(quantity))
    assert found is not None and found.n == 1
    return found.mean


def test_the_range_of_the_loss_is_from_the_lowest_to_the_highest_step() -> None:
    """Steps 0.05 to 0.4 of a loss falling by eta - 1.5 eta²: lowest 2 - 1/6 is not reached, lowest of the four wins."""
    falls = [eta - 1.5 * eta**2 for eta in (0.05, 0.1, 0.2, 0.4)]
    assert median("loss_range") == pytest.approx(max(falls) - min(falls))


def test_the_change_of_the_gradient_is_that_of_the_longest_step_of_a_quadratic() -> None:
    assert median("gradient_change", g=2.0) == pytest.approx(0.4 * 3.0 * 2.0)


def test_smoothness_is_the_largest() -> None:
    assert median("smoothness", beta=5.0) == 5.0


def test_proportional_steps_do_not_see_the_scale_of_the_weights() -> None:
    """Weights times c: gradients over c, beta over c²."""
    for quantity in ("free_loss_range", "free_gradient_change", "free_smoothness"):
        assert median(quantity, g=0.1, w=200.0, beta=0.03) == pytest.approx(median(quantity, g=1.0, w=20.0, beta=3.0))
    assert median("free_smoothness") == pytest.approx(3.0 * 20.0**2)
    assert median("free_gradient_change") == pytest.approx(0.02 * 20.0 * 3.0)
    for quantity in ("loss_range", "gradient_change", "smoothness"):
        assert median(quantity, g=0.1, w=200.0, beta=0.03) < median(quantity, g=1.0, w=20.0, beta=3.0) / 5


def test_the_longest_step_raises_a_quadratic_where_it_is_longer_than_two_over_its_curvature() -> None:
    """The longest are 0.4, and 0.02 * 20 = 0.4."""
    for quantity in ("raised", "free_raised"):
        assert (median(quantity, beta=4.9), median(quantity, beta=5.1)) == (0.0, 1.0)


def test_rises_are_counted_over_the_looks() -> None:
    arm = courses(made([cell("none", change=lambda step: {"beta": 9.0 if step == 30 else 1.0})]))[2]
    assert over_looks(arm, find_quantity("raised")).mean == 0.25


def test_scales() -> None:
    assert median("gradient_norm", g=1.5) == 1.5
    assert median("weight_norm", w=12.0) == 12.0
    assert median("relative_step", g=1.5, w=12.0) == pytest.approx(0.1 * 1.5 / 12)
    assert median("rounding") == 0.01


def test_the_median_is_over_looks_and_the_spread_over_seeds() -> None:
    cells = [cell("none", seed, change=lambda step, seed=seed: {"beta": step + seed}) for seed in (0, 4)]
    arm = courses(made(cells))[2]
    found = over_looks(arm, find_quantity("smoothness"))
    assert (found.low, found.mean, found.high, found.n) == (15.0, 17.0, 19.0, 2)


def test_ratios_are_seed_by_seed() -> None:
    cells = [
        cell(arm, seed, change=lambda step, beta=beta: {"beta": beta})
        for arm, seed, beta in (("batch_norm", 0, 1.0), ("batch_norm", 1, 2.0), ("none", 0, 3.0), ("none", 1, 20.0))
    ]
    batch, _, plain = courses(made([*cells, cell("none", 5)]))
    found = ratio(plain, batch, find_quantity("smoothness"))
    assert (found.low, found.mean, found.high, found.n) == (3.0, 6.5, 10.0, 2)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize(("column", "quantity"), [("loss", "loss_range"), ("change", "gradient_change")])
def test_a_step_that_leaves_the_numbers_counts_as_infinite(column, quantity, broken) -> None:
    one = cell("none")
    rows = [
        Measurement(**(vars(row) | {"value": broken})) if (row.subject, row.quantity) == ("rate 4.0", column) else row
        for row in one.measurements
    ]
    (look, *_) = course_of(CellRecord(factors=one.factors, measurements=tuple(rows), seconds=1.0)).looks
    assert find_quantity(quantity).value(look) == math.inf
    assert find_quantity("raised").value(look) == (column == "loss")


def test_a_gradient_of_zero_has_no_relative_change() -> None:
    one = cell("none")
    rows = [
        Measurement(**(vars(row) | {"value": 0.0})) if row.quantity == "gradient_norm" else row
        for row in one.measurements
    ]
    (look, *_) = course_of(CellRecord(factors=one.factors, measurements=tuple(rows), seconds=1.0)).looks
    assert math.isnan(find_quantity("free_gradient_change").value(look))

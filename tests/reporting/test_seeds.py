"""Numbers over seeds."""

import math

import pytest

from steadynorm.reporting.seeds import spread, spreads


def test_spread_uses_the_sample_standard_deviation():
    found = spread([0.7, 0.8, 0.9])
    assert (found.mean, found.sd, found.low, found.high, found.n) == (
        pytest.approx(0.8),
        pytest.approx(0.1),
        0.7,
        0.9,
        3,
    )


def test_spread_of_one_value_has_no_deviation():
    assert spread([0.5]).sd is None


def test_spread_leaves_out_what_is_not_finite():
    found = spread([1.0, math.nan, math.inf, 3.0])
    assert (found.mean, found.n) == (2.0, 2)


def test_spread_of_nothing_finite_is_none():
    assert spread([math.nan]) is None


def test_spreads_are_over_the_seeds_that_have_the_name():
    found = spreads([{"a": 1.0, "b": 5.0}, {"a": 3.0, "c": math.nan}])
    assert {name: (one.low, one.high, one.n) for name, one in found.items()} == {"a": (1.0, 3.0, 2), "b": (5.0, 5.0, 1)}

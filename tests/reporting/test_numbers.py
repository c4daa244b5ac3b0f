"""How numbers are written."""

import math

import pytest

from steadynorm.reporting.numbers import number, percent, percent_spread, points, seconds
from steadynorm.reporting.seeds import spread


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.7083, "0.708"),
        (1.234, "1.23"),
        (12345.0, "12,345"),
        (2e-5, "2.00e-05"),
        (math.nan, "—"),
        (None, "—"),
    ],
)
def test_numbers_keep_three_digits(value, text):
    assert number(value) == text


def test_a_share_becomes_a_percentage():
    assert percent(0.8294) == "82.9\N{NO-BREAK SPACE}%"


def test_a_missing_share_becomes_a_dash():
    assert percent(math.nan) == "—"


def test_several_seeds_show_their_deviation():
    assert percent_spread(spread([0.7, 0.8, 0.9])) == "80.0 ± 10.0 %".replace(" ", "\N{NO-BREAK SPACE}")


def test_one_seed_shows_no_deviation():
    assert percent_spread(spread([0.7])) == "70.0\N{NO-BREAK SPACE}%"


def test_a_difference_loses_its_sign():
    assert points(-0.023) == "2.3\N{NO-BREAK SPACE}points"


@pytest.mark.parametrize(("value", "text"), [(0.25, "0.25 s"), (12.34, "12.3 s"), (360.0, "6.0 min"), (None, "—")])
def test_durations_choose_their_unit(value, text):
    assert seconds(value).replace("\N{NO-BREAK SPACE}", " ") == text

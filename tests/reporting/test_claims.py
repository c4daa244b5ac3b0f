"""Rules that judge claims."""

import pytest

from steadynorm.reporting.chance import Chance
from steadynorm.reporting.claims import compare, is_guessing, judge, too_few, unless_guessing
from steadynorm.reporting.report import Claim
from steadynorm.reporting.seeds import spread


def compared(first: tuple[float, ...], second: tuple[float, ...], *, higher: bool) -> Claim:
    return compare(
        "The first is ahead.",
        spread(first),
        spread(second),
        higher=higher,
        what="the thing",
        names=("with batch norm", "without"),
        shown=lambda value: f"{value:g}",
        absent="It was not trained.",
    )


@pytest.mark.parametrize(
    ("first", "second", "lower", "higher"),
    [
        ((1.0,), (2.0,), "met", "not met"),
        ((2.0,), (1.0,), "not met", "met"),
        ((1.0,), (1.0,), "not met", "not met"),
        ((1.0, 2.0), (3.0, 4.0), "met", "not met"),
        ((1.0, 3.0), (2.9, 4.0), "not met", "not met"),
    ],
)
def test_a_difference_counts_where_the_seeds_ranges_are_apart(
    first: tuple[float, ...], second: tuple[float, ...], lower: str, higher: str
) -> None:
    assert [compared(first, second, higher=which).verdict for which in (False, True)] == [lower, higher]


def test_overlapping_ranges_are_said() -> None:
    found = compared((1.0, 3.0), (2.0, 5.0), higher=False)
    assert found.measured == "The thing: 2 with batch norm, 3.5 without; the seeds' ranges overlap."


@pytest.mark.parametrize(("first", "second"), [((), (1.0,)), ((1.0,), ()), ((), ())])
def test_what_is_absent_is_not_measured_and_says_why(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    found = compared(first, second, higher=True)
    assert (found.verdict, found.measured) == ("not measured", "It was not trained.")


@pytest.mark.parametrize(("met", "verdict"), [(True, "met"), (False, "not met"), (None, "not measured")])
def test_a_verdict_follows_from_what_was_found(met: bool | None, verdict: str) -> None:
    assert judge("So.", met, "Yes.") == Claim(claim="So.", verdict=verdict, measured="Yes.")


CHANCE = Chance(share=0.1, images=10_000)


def test_one_seed_that_may_be_guessing_is_enough() -> None:
    assert is_guessing(spread([0.5, 0.105]), CHANCE)
    assert not is_guessing(spread([0.5, 0.2]), CHANCE) and not is_guessing(None, CHANCE)


def test_a_verdict_on_networks_that_may_be_guessing_is_taken_back() -> None:
    item = judge("So.", True, "Yes.")
    found = unless_guessing(item, CHANCE, {"batch norm": spread([0.7]), "the other": spread([0.105]), "none": None})
    measured = found.measured.replace("\N{NO-BREAK SPACE}", " ")
    assert found.verdict == "not measured: at chance"
    assert measured == "The other at 10.5 %, not surely above the 10.0 % of guessing. Yes."


def test_a_verdict_on_networks_that_have_learned_stays() -> None:
    item = judge("So.", True, "Yes.")
    assert unless_guessing(item, CHANCE, {"batch norm": spread([0.7])}) == item


def test_what_was_not_measured_stays_so_at_chance() -> None:
    item = judge("So.", None, "It was not trained.")
    assert unless_guessing(item, CHANCE, {"the other": spread([0.1])}) == item


def test_a_headline_says_where_no_network_can_be_told_from_guessing() -> None:
    assert too_few(Chance(share=0.9, images=1_000)) == ""
    said = too_few(Chance(share=0.9, images=40)).replace("\N{NO-BREAK SPACE}", " ")
    assert said == "40 validation images, 90 % of one class, cannot tell a network from guessing"

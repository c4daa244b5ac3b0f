from dataclasses import dataclass

import pytest

from steadynorm.lab.analysis import Spread, spread
from steadynorm.lab.report.question import Question, judge, pair


@dataclass(frozen=True)
class Arm:
    arm: str
    found: Spread | None


def arm(name: str, *values: float) -> Arm:
    return Arm(name, spread(values))


LOWER = Question[Arm](claim="Lower.", what="the thing", value=lambda arm: arm.found, shown=lambda value: f"{value:g}")
HIGHER = Question[Arm](
    claim="Higher.",
    what="the thing",
    value=lambda arm: arm.found,
    shown=lambda value: f"{value:g}",
    batch_is_higher=True,
)


@pytest.mark.parametrize(
    ("batch", "plain", "lower", "higher"),
    [
        ((1.0,), (2.0,), "met", "not met"),
        ((2.0,), (1.0,), "not met", "met"),
        ((1.0,), (1.0,), "not met", "not met"),
        ((1.0, 2.0), (3.0, 4.0), "met", "not met"),
        ((1.0, 3.0), (2.9, 4.0), "not met", "not met"),
    ],
)
def test_a_difference_counts_where_the_seeds_ranges_are_apart(
    batch: tuple[float, ...], plain: tuple[float, ...], lower: str, higher: str
) -> None:
    arms = arm("batch_norm", *batch), arm("none", *plain)
    verdicts = [judge(question, *arms, why_absent=lambda _: "").verdict for question in (LOWER, HIGHER)]
    assert verdicts == [lower, higher]


def test_overlapping_ranges_are_said() -> None:
    found = judge(LOWER, arm("batch_norm", 1.0, 3.0), arm("none", 2.0, 5.0), why_absent=lambda _: "")
    assert found.measured == "The thing: 2 with batch norm, 3.5 without; the seeds' ranges overlap."


def test_the_arm_without_a_number_says_why() -> None:
    batch, plain = arm("batch_norm", 1.0), arm("none")
    found = judge(LOWER, batch, plain, why_absent=lambda one: "" if one is None else one.arm)
    assert (found.verdict, found.measured) == ("not measured", "none")


def test_ours_is_the_batch_norm_of_a_pair() -> None:
    arms = [arm(name) for name in ("none", "torch_batch_norm", "batch_norm")]
    assert pair(arms) == (arms[2], arms[0])
    assert pair(arms[1:2]) == (arms[1], None)

"""Claims on arms."""

import math
from dataclasses import replace

from steadynorm.lab.describe.arms import Arm
from steadynorm.lab.describe.claims import with_and_without
from tests.support.records import run


def test_a_number_that_rests_on_both_arms_is_missing_because_of_the_one_that_diverged() -> None:
    batch = Arm.of("batch_norm", [run("batch_norm", val_accuracy=[0.5])], {"steps": lambda cell: math.nan})
    lost = replace(batch, arm="none", cells=(run("none", status="diverged", diverged_at_step=7),))
    found = with_and_without("Sooner.", (batch, lost), "steps", "first step")
    assert (found.verdict, found.measured) == ("not measured", "No normalization: diverged at step 7.")


def test_an_arm_that_is_missing_is_named() -> None:
    batch = Arm.of("batch_norm", [run("batch_norm", val_accuracy=[0.5])], {"steps": lambda cell: 3.0})
    measured = [
        with_and_without("Sooner.", arms, "steps", "first step").measured for arms in ((batch, None), (None, batch))
    ]
    assert measured == ["No network without normalization was trained.", "No network with batch norm was trained."]


def test_an_arm_that_has_not_ended_is_named() -> None:
    batch = Arm.of("batch_norm", [run("batch_norm", val_accuracy=[0.5])], {"steps": lambda cell: 3.0})
    waiting = Arm.of("none", [run("none", status="waiting")], {"steps": lambda cell: math.nan})
    assert (
        with_and_without("Sooner.", (batch, waiting), "steps", "").measured
        == "No normalization: 0 of 1 network measured."
    )

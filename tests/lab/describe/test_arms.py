"""Networks reduced to numbers at the points of a grid."""

import math

from steadynorm.lab.describe.arms import Arm, arms_at, final, points_of
from tests.support.records import record, run, with_factors


def test_a_grid_changes_its_last_factor_first() -> None:
    found = [tuple(point.values()) for point in points_of(depth=[2, 3], arm=["a", "b"])]
    assert found == [(2, "a"), (2, "b"), (3, "a"), (3, "b")]


def test_an_arm_of_a_grid_holds_the_networks_of_its_point_without_a_purpose() -> None:
    runs = [
        with_factors(run("none", val_accuracy=[0.1 * depth], seed=seed), depth=depth)
        for seed, depth in [(0, 2), (1, 2), (0, 3)]
    ]
    searched = with_factors(runs[0], purpose="stability")
    shallow, deep = arms_at(record([*runs, searched]), {"accuracy": final("val_accuracy")}, depth=[2, 3], arm=["none"])
    assert (shallow.arm, shallow.at, shallow.seeds) == ("none", {"depth": 2, "arm": "none"}, 2)
    assert shallow["accuracy"].n == 2 and deep.values == {"accuracy": [0.1 * 3]}


def test_arms_are_named_by_the_factor_that_is_asked_for() -> None:
    made = record([with_factors(run("none", val_accuracy=[0.5]), variant="plain")])
    (arm,) = arms_at(made, {}, by="variant", variant=["plain"])
    assert (arm.arm, arm.seeds) == ("plain", 1)


def test_the_mean_of_a_quantity_is_no_number_where_no_network_has_it() -> None:
    cells = [run("a", val_accuracy=[value], seed=seed) for seed, value in enumerate((0.25, 0.75))]
    arm = Arm.of("a", cells, {"accuracy": final("val_accuracy"), "none": lambda cell: math.nan})
    assert arm.mean("accuracy") == 0.5 and math.isnan(arm.mean("none"))


def test_what_became_of_the_networks_of_an_arm() -> None:
    waiting, lost = run("a", status="waiting"), run("a", seed=1, status="diverged", diverged_at_step=1234)
    arm = Arm.of("a", [waiting, lost, run("a", val_accuracy=[0.5], seed=2)], {"accuracy": final("val_accuracy")})
    assert (arm.waiting, arm.lost) == (1, "1 of 3 diverged at step 1,234")
    assert arm.exploded == "1 of 3 exploded at step 1,234"
    assert math.isnan(arm.values["accuracy"][0]) and arm["accuracy"].mean == 0.5
    assert arm.as_json() == {"seeds": 3, "waiting": 1, "exploded_at_step": (1234,), "accuracy": arm["accuracy"]}

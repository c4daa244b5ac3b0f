"""What the reports of all experiments say alike."""

import math
from dataclasses import replace

import pytest

from steadynorm.lab.describe import (
    Arm,
    all_measured,
    arm_cell,
    curves,
    few_arms,
    pair,
    training_method,
    with_and_without,
)
from steadynorm.reporting.records import Cell, Measurement, Status
from steadynorm.reporting.report import Figure
from tests.support.records import config, record, run


def drawn(*runs: Cell, epochs: int = 4) -> Figure:
    return curves(
        {"a": runs},
        "grad_norm_mean",
        name="a",
        title="A",
        caption="",
        order=["a"],
        config=config(epochs=epochs, milestones=[2, 9]),
        steps=("grad_norm_p5", "grad_norm_p95"),
    )


def test_a_curve_has_a_row_for_each_finite_value_of_each_seed() -> None:
    first = run("a", val_accuracy=[0.2, 0.4], change=lambda epoch: {"grad_norm_mean": [1.0, math.inf][epoch - 1]})
    found = drawn(first, run("a", val_accuracy=[0.2], seed=1, change=lambda _: {"grad_norm_mean": 3.0}))
    assert [(row["epoch"], row["value"]) for row in found.data] == [(1, 1.0), (1, 3.0)]


def test_a_single_seed_shows_the_spread_over_the_steps() -> None:
    columns = {"grad_norm_mean": 2.0, "grad_norm_p5": 1.0, "grad_norm_p95": 9.0}
    found = drawn(run("a", val_accuracy=[0.2], change=lambda _: columns))
    assert found.options["band"] == ("low", "high") and (found.data[0]["low"], found.data[0]["high"]) == (1.0, 9.0)
    assert "95th percentile" in found.caption
    assert "band" not in drawn(run("a", val_accuracy=[0.2]), run("a", val_accuracy=[0.3], seed=1)).options


def test_rates_that_are_lowered_within_the_epochs_are_marked() -> None:
    found = drawn(run("a", val_accuracy=[0.2]))
    assert found.options["rules"] == [2.5] and "Dotted" in found.caption


def test_few_epochs_get_a_tick_each() -> None:
    assert drawn(run("a", val_accuracy=[0.2]), epochs=2).options["x_values"] == [1, 2]
    assert not drawn(run("a", val_accuracy=[0.2]), epochs=20).options["x_values"]


def test_a_run_that_diverged_is_crossed_at_its_last_value_or_at_the_foot() -> None:
    stopped = run("a", val_accuracy=[0.2, 0.3], status="diverged", change=lambda epoch: {"grad_norm_mean": epoch})
    first, second = drawn(stopped, run("a", seed=1, status="diverged")).marks["crosses"]
    assert (first["epoch"], first["value"]) == (2, 2)
    assert second["epoch"] == 0.5 and math.isnan(second["value"])


def test_how_many_workers_shared_the_batches_is_said_where_there_were_several():
    alone = record([])
    shared = replace(alone, resolved=alone.resolved | {"workers": 4})
    assert "worker" not in training_method(alone)[0]
    assert "on cpu in bfloat16, on 4 workers that share each batch evenly. " in training_method(shared)[0]


def test_the_values_of_a_quantity_are_told_apart_by_subject():
    rows = [("stored", "accuracy", 0.5), ("gate", "accuracy", 0.6), ("", "images", 9.0)]
    cell = Cell(
        factors={}, measurements=tuple(Measurement(subject=one, quantity=of, value=value) for one, of, value in rows)
    )
    assert cell.values("accuracy") == {"stored": 0.5, "gate": 0.6}


def test_an_arm_has_the_color_of_its_line_also_behind_other_lines():
    made = record([], arms=["batch_norm", "none"])
    assert [arm_cell(made, "none").tone, arm_cell(made, "none", before=1).tone] == ["series-1", "series-2"]
    assert arm_cell(made, "none", before=5).tone == "series-0"


def test_the_pair_is_batch_norm_ours_first_and_no_normalization():
    assert pair({"torch_batch_norm": 1, "batch_norm": 2, "none": 3}) == (2, 3)
    assert pair({"torch_batch_norm": 1, "layer_norm": 2}) == (1, None)


def test_few_arms_are_named_and_many_counted():
    assert few_arms(["none"]) == "no normalization"
    assert few_arms(["none", "layer_norm"]) == "no normalization and layer norm"
    assert few_arms(["none", "layer_norm", "batch_norm"]) == "3 arms"
    assert few_arms(["none", "layer_norm"], most=1) == "2 arms"


def test_a_number_that_rests_on_both_arms_is_missing_because_of_the_one_that_diverged() -> None:
    batch = Arm.of("batch_norm", [run("batch_norm", val_accuracy=[0.5])], {"steps": lambda cell: math.nan})
    lost = replace(batch, arm="none", cells=(run("none", status="diverged", diverged_at_step=7),))
    found = with_and_without("Sooner.", (batch, lost), "steps", "first step")
    assert (found.verdict, found.measured) == ("not measured", "Diverged at step 7.")


@pytest.mark.parametrize(
    ("statuses", "measured"),
    [(["finished"], False), (["diverged", "diverged"], True), (["finished", "diverged"], False), ([], False)],
)
def test_nothing_is_planned_after_networks_that_all_diverged(statuses: list[Status], measured: bool) -> None:
    networks = [run("a", val_accuracy=[0.2], seed=seed, status=status) for seed, status in enumerate(statuses)]
    assert all_measured(record(networks)) == measured

"""Charts by arms."""

import math

from steadynorm.lab.describe.figures import arm_figure, chart, curves
from steadynorm.reporting.records import Cell
from steadynorm.reporting.report import Figure
from tests.support.records import record, run


def drawn(*runs: Cell, epochs: int = 4) -> Figure:
    made = record(runs, arms=["a"], epochs=epochs, milestones=[2, 9])
    ends = ("grad_norm_p5", "grad_norm_p95")
    (figure,) = curves(made, {"a": runs}, "grad_norm_mean", name="a", title="A", caption="", steps=ends)
    return figure


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


def test_a_chart_of_nothing_is_none() -> None:
    how = {"name": "a", "title": "A", "caption": "", "x": "x", "y": "y", "hue": "arm"}
    assert chart("lines", [], **how) == chart("lines", [], marks={"crosses": []}, **how) == []


def test_marks_alone_are_drawn_beside_a_row_without_values() -> None:
    cross = {"arm": "none", "x": 1, "y": math.nan}
    how = {"name": "a", "title": "A", "caption": "", "x": "x", "y": "y"}
    (figure,) = arm_figure(record([], arms=["none"]), "lines", [], marks={"crosses": [cross], "rings": []}, **how)
    (row,) = figure.data
    assert row.keys() == {"arm", "x", "y"} and math.isnan(row["x"]) and math.isnan(row["y"])
    assert [one["arm"] for one in figure.marks["crosses"]] == ["no normalization"] and "rings" not in figure.marks


def test_arms_are_drawn_by_their_names_in_the_order_of_the_configuration() -> None:
    how = {"name": "a", "title": "A", "caption": "", "x": "x", "y": "y"}
    (figure,) = arm_figure(record([], arms=["none", "batch_norm"]), "lines", [{"arm": "none", "x": 1, "y": 2}], **how)
    assert figure.data == [{"arm": "no normalization", "x": 1, "y": 2}]
    assert (figure.options["hue"], figure.options["order"]) == ("arm", ["no normalization", "batch norm"])

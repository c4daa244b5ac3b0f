"""Numbers made from records."""

import math

import pytest

from steadynorm.lab.analysis import best_rate, curve, largest_fall, pictures, spread
from tests.support.records import record, run


def tune(arm, lr, accuracy, status="finished"):
    values = [] if accuracy is None else [0.1, accuracy]
    return run(arm, val_accuracy=values, lr=lr, purpose="tune", status=status)


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


def test_best_rate_has_the_highest_final_held_out_accuracy():
    runs = [tune("batch_norm", 0.1, 0.6), tune("batch_norm", 0.3, 0.7), tune("batch_norm", 0.02, 0.5)]
    assert best_rate(runs, "batch_norm") == 0.3


def test_best_rate_looks_at_the_last_epoch_not_the_best_one():
    early = run("batch_norm", val_accuracy=[0.9, 0.5], lr=0.3, purpose="tune")
    assert best_rate([early, tune("batch_norm", 0.1, 0.6)], "batch_norm") == 0.1


def test_best_rate_passes_over_diverged_runs():
    runs = [tune("none", 0.02, 0.4), tune("none", 0.3, 0.8, status="diverged")]
    assert best_rate(runs, "none") == 0.02


def test_best_rate_passes_over_other_arms_and_purposes():
    other = run("batch_norm", val_accuracy=[0.9], lr=0.5)
    assert best_rate([other, tune("none", 0.3, 0.8), tune("batch_norm", 0.1, 0.2)], "batch_norm") == 0.1


def test_best_rate_passes_over_accuracies_that_are_no_number():
    assert best_rate([tune("batch_norm", 0.3, math.nan), tune("batch_norm", 0.1, 0.2)], "batch_norm") == 0.1


def test_best_rate_of_equals_is_the_smallest():
    assert best_rate([tune("batch_norm", 0.3, 0.6), tune("batch_norm", 0.1, 0.6)], "batch_norm") == 0.1


def test_best_rate_is_none_when_every_run_diverged():
    assert best_rate([tune("none", 0.3, None, status="diverged")], "none") is None


def test_without_tuning_there_is_one_picture():
    assert [picture.name for picture in pictures(record([run("batch_norm", val_accuracy=[0.5])]))] == ["shared"]


def test_the_same_runs_serve_both_pictures_when_the_best_rate_is_the_shared_one():
    runs = [run("batch_norm", val_accuracy=[0.5]), tune("batch_norm", 0.1, 0.6), tune("batch_norm", 0.3, 0.2)]
    shared, tuned = pictures(record(runs, arms=["batch_norm"]))
    assert tuned.arms[0].runs == shared.arms[0].runs == (runs[0],)


def test_the_tuned_picture_holds_the_runs_at_the_best_rate():
    own = run("none", val_accuracy=[0.7], lr=0.02)
    runs = [run("none", val_accuracy=[0.5]), own, tune("none", 0.02, 0.6), tune("none", 0.1, 0.2)]
    _, tuned = pictures(record(runs, arms=["none"]))
    assert tuned.arms[0].runs == (own,)


def test_there_is_no_tuned_picture_while_a_tuning_run_waits():
    runs = [tune("batch_norm", 0.1, 0.6), tune("batch_norm", 0.3, None, status="waiting")]
    assert len(pictures(record(runs, arms=["batch_norm"]))) == 1


def test_a_curve_averages_the_runs_that_reached_an_epoch():
    runs = [
        run("batch_norm", val_accuracy=[0.2, 0.4]),
        run("batch_norm", val_accuracy=[0.4], seed=1, status="diverged"),
    ]
    first, second = curve(runs, lambda row: row.val_accuracy)
    assert (first.mean, first.low, first.high, first.n) == (pytest.approx(0.3), 0.2, 0.4, 2)
    assert (second.mean, second.n) == (0.4, 1)


def test_a_curve_skips_an_epoch_without_a_finite_value():
    points = curve([run("batch_norm", val_accuracy=[0.2, math.nan, 0.4])], lambda row: row.val_accuracy)
    assert [point.epoch for point in points] == [1, 3]


def test_a_curve_takes_its_band_from_other_columns():
    runs = [run("batch_norm", val_accuracy=[0.2], change=lambda _: {"grad_norm_p5": 1.0, "grad_norm_p95": 9.0})]
    (point,) = curve(
        runs, lambda row: row.grad_norm_mean, band=(lambda row: row.grad_norm_p5, lambda row: row.grad_norm_p95)
    )
    assert (point.low, point.high) == (1.0, 9.0)


def test_the_largest_fall_is_between_neighbouring_epochs_up_to_the_limit():
    fallen = run("batch_norm", val_accuracy=[0.5, 0.4, 0.6, 0.3])
    assert largest_fall(fallen, until=3) == pytest.approx(0.1)
    assert largest_fall(fallen, until=4) == pytest.approx(0.3)


def test_a_rising_curve_has_no_fall():
    assert largest_fall(run("batch_norm", val_accuracy=[0.1, 0.2]), until=2) == 0.0


def test_the_fall_of_one_epoch_is_no_number():
    assert math.isnan(largest_fall(run("batch_norm", val_accuracy=[0.1]), until=1))

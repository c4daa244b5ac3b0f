"""The numbers of each arm."""

import json
import math

import pytest

from steadynorm.lab.analysis import pictures
from steadynorm.lab.report.compare.document import make_report
from steadynorm.lab.report.compare.summary import early_epoch, is_finished, summarise
from steadynorm.lab.report.document import as_json
from tests.support.records import record, run


def summary_of(*runs, **changes):
    made = record(runs, arms=[runs[0].spec.arm], **changes)
    return summarise(made, pictures(made)[0].arms[0])


def test_final_accuracy_is_over_the_runs_that_finished():
    found = summary_of(
        run("batch_norm", val_accuracy=[0.5, 0.8]),
        run("batch_norm", val_accuracy=[0.5, 0.6], seed=1),
        run("batch_norm", val_accuracy=[0.1], seed=2, status="diverged", diverged_at_step=40),
    )
    assert found.val_accuracy.mean == pytest.approx(0.7)
    assert found.val_accuracy.sd == pytest.approx(0.2 / math.sqrt(2))
    assert (found.val_accuracy.low, found.val_accuracy.high, found.val_accuracy.n) == (0.6, 0.8, 2)


def test_diverged_runs_are_counted_with_their_step():
    found = summary_of(run("none", val_accuracy=[0.1], status="diverged", diverged_at_step=40))
    assert (found.seeds, found.diverged, found.diverged_at_step, found.val_accuracy) == (1, 1, (40,), None)


def test_early_accuracy_is_that_of_epoch_ten():
    values = [0.01 * number for number in range(1, 21)]
    assert summary_of(run("batch_norm", val_accuracy=values)).val_accuracy_early.mean == pytest.approx(0.10)


@pytest.mark.parametrize(("epochs", "early"), [(20, 10), (10, 10), (9, 5), (4, 2), (1, 1)])
def test_the_early_epoch_is_ten_or_the_middle(epochs, early):
    assert early_epoch(record([], epochs=epochs)) == early


def test_the_best_epoch_has_the_highest_mean():
    assert summary_of(run("batch_norm", val_accuracy=[0.1, 0.9, 0.3])).best_epoch == 2


def test_the_largest_gap_is_training_over_validation():
    gaps = {1: 0.02, 2: 0.11, 3: 0.05}
    found = summary_of(
        run("batch_norm", val_accuracy=[0.5] * 3, change=lambda epoch: {"train_accuracy": 0.5 + gaps[epoch]})
    )
    assert found.largest_gap.mean == pytest.approx(0.11)


def test_the_gradient_norm_is_the_mean_over_the_epochs():
    norms = {1: 1.0, 2: 2.0, 3: math.inf}
    found = summary_of(run("batch_norm", val_accuracy=[0.5] * 3, change=lambda epoch: {"grad_norm_mean": norms[epoch]}))
    assert found.grad_norm.mean == 1.5


def test_steadiness_is_the_median_ratio_of_percentiles():
    p95 = {1: 2.0, 2: 3.0, 3: 100.0}
    found = summary_of(
        run(
            "batch_norm",
            val_accuracy=[0.5] * 3,
            change=lambda epoch: {"grad_norm_p5": 0.5, "grad_norm_p95": p95[epoch]},
        )
    )
    assert found.grad_norm_ratio.mean == 6.0


def test_time_is_the_median_over_epochs():
    times = {1: 60.0, 2: 10.0, 3: 11.0}
    found = summary_of(run("batch_norm", val_accuracy=[0.5] * 3, change=lambda epoch: {"seconds": times[epoch]}))
    assert found.seconds_per_epoch == 11.0


def test_gradient_norms_leave_out_diverged_runs_while_others_are_left():
    found = summary_of(
        run("none", val_accuracy=[0.5], change=lambda _: {"grad_norm_mean": 2.0}),
        run("none", val_accuracy=[0.1], change=lambda _: {"grad_norm_mean": 50.0}, seed=1, status="diverged"),
    )
    assert found.grad_norm.mean == 2.0


def test_an_experiment_that_has_only_tuned_is_not_finished():
    tuned = run("batch_norm", val_accuracy=[0.5], purpose="tune")
    assert not is_finished(record([tuned], arms=["batch_norm"], tune_lr=[0.1]))


def test_json_holds_null_where_a_number_is_missing():
    made = record([run("batch_norm", val_accuracy=[math.nan, math.nan])], arms=["batch_norm"], lr=0.1)
    found = as_json(made, make_report(made))
    json.dumps(found, allow_nan=False)
    assert found["pictures"]["shared"]["batch_norm"]["val_accuracy"] is None


def test_json_holds_every_epoch_of_every_run():
    made = record([run("batch_norm", val_accuracy=[0.25, 0.5]), run("none", status="waiting")])
    first, second = as_json(made, make_report(made))["runs"]
    assert [epoch["val_accuracy"] for epoch in first["epochs"]] == [0.25, 0.5]
    assert (first["spec"]["arm"], second["epochs"], second["status"]) == ("batch_norm", [], "waiting")
    assert "layers" not in first


def test_json_of_a_waiting_experiment_is_not_finished():
    made = record([run("batch_norm", status="waiting")], arms=["batch_norm"])
    assert as_json(made, make_report(made))["finished"] is False


def test_an_experiment_whose_runs_all_ended_is_finished():
    ended = [run("batch_norm", val_accuracy=[0.5]), run("none", status="diverged", diverged_at_step=3)]
    assert is_finished(record(ended))

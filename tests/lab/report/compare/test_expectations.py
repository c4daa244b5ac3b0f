"""The article's expectations against measured numbers."""

import pytest

from steadynorm.lab.analysis import pictures
from steadynorm.lab.report.compare.expectations import deviations, expectations
from steadynorm.lab.report.compare.summary import summarise
from tests.support.records import record, run


def judged(batch, none, **changes):
    made = record([batch, none], **changes)
    return expectations(made, [summarise(made, arm) for arm in pictures(made)[0].arms])


def flat(arm, level, **columns):
    return run(arm, val_accuracy=[level] * 20, change=lambda epoch: columns)


@pytest.mark.parametrize(("level", "verdict"), [(0.73, "met"), (0.81, "met"), (0.70, "not met")])
def test_batch_norm_has_to_come_near_75_percent(level, verdict):
    assert judged(flat("batch_norm", level), flat("none", 0.6))[0].verdict == verdict


@pytest.mark.parametrize(("level", "verdict"), [(0.62, "met"), (0.70, "not met"), (0.50, "not met")])
def test_no_normalization_has_to_be_near_60_percent(level, verdict):
    assert judged(flat("batch_norm", 0.75), flat("none", level))[1].verdict == verdict


def test_a_verdict_comes_with_its_numbers():
    found = judged(flat("batch_norm", 0.75), flat("none", 0.70))[1]
    assert found.measured.replace("\N{NO-BREAK SPACE}", " ") == (
        "70.0 % at epoch 10, 10.0 points above the article's figure."
    )


def test_the_article_said_nothing_about_shorter_runs():
    found = judged(run("batch_norm", val_accuracy=[0.8] * 4), run("none", val_accuracy=[0.6] * 4), epochs=4)
    assert [item.verdict for item in found[:2]] == ["not measured", "not measured"]


def test_other_data_is_judged_by_direction_alone():
    found = judged(flat("batch_norm", 0.9), flat("none", 0.3), data="shapes")
    assert found[0].claim == "Batch norm is ahead at epoch 10." and found[0].verdict == "met"
    assert not any("75" in item.claim or "60" in item.claim for item in found)


def test_batch_norm_behind_is_not_met():
    assert judged(flat("batch_norm", 0.3), flat("none", 0.9), data="shapes")[0].verdict == "not met"


def test_a_larger_fall_without_normalization_is_less_steady():
    rough = run("none", val_accuracy=[0.5, 0.3] * 10)
    assert judged(flat("batch_norm", 0.75), rough)[2].verdict == "met"
    assert judged(run("batch_norm", val_accuracy=[0.5, 0.3] * 10), flat("none", 0.6))[2].verdict == "not met"


def test_gradient_norms_are_compared_in_level():
    low, high = {"grad_norm_mean": 1.0}, {"grad_norm_mean": 2.0}
    assert judged(flat("batch_norm", 0.7, **low), flat("none", 0.6, **high))[3].verdict == "met"
    assert judged(flat("batch_norm", 0.7, **high), flat("none", 0.6, **low))[3].verdict == "not met"


def test_gradient_norms_are_compared_in_steadiness():
    calm, wild = {"grad_norm_p95": 1.0, "grad_norm_p5": 0.9}, {"grad_norm_p95": 9.0, "grad_norm_p5": 0.9}
    assert judged(flat("batch_norm", 0.7, **calm), flat("none", 0.6, **wild))[4].verdict == "met"
    assert judged(flat("batch_norm", 0.7, **wild), flat("none", 0.6, **calm))[4].verdict == "not met"


def test_an_arm_that_diverged_is_named_with_its_step():
    stopped = run("none", status="diverged", diverged_at_step=1234)
    found = judged(flat("batch_norm", 0.75), stopped)[1]
    assert (found.verdict, found.measured) == ("not met", "Every run diverged, at step 1,234.")


def test_diverging_without_normalization_settles_which_is_less_steady():
    stopped = run("none", val_accuracy=[0.5], status="diverged", diverged_at_step=600)
    found = judged(run("batch_norm", val_accuracy=[0.5, 0.3] * 10), stopped)[2]
    assert (found.verdict, found.measured) == ("met", "No normalization: every run diverged, at step 600.")


def test_diverging_with_batch_norm_is_not_met():
    stopped = run("batch_norm", val_accuracy=[0.5], status="diverged", diverged_at_step=600)
    assert judged(stopped, flat("none", 0.6))[2].verdict == "not met"


def test_gradient_norms_over_unlike_numbers_of_epochs_are_not_compared():
    stopped = run("none", val_accuracy=[0.5], status="diverged", diverged_at_step=600)
    found = judged(flat("batch_norm", 0.75), stopped)[3]
    assert found.verdict == "not measured" and found.measured.startswith("20 epochs with batch norm and 1 without")


def test_an_arm_that_was_not_trained_is_not_measured():
    made = record([flat("batch_norm", 0.75)], arms=["batch_norm"])
    found = expectations(made, [summarise(made, arm) for arm in pictures(made)[0].arms])
    assert found[1].measured == "The arm was not trained."


def test_the_articles_own_settings_do_not_deviate():
    assert deviations(record([])) == ()


def test_changed_settings_are_listed():
    assert deviations(record([], batch_size=64, milestones=[5])) == (
        "batch size 64 instead of 128",
        "milestones 5 instead of 10 and 15",
    )


def test_networks_that_may_be_guessing_decide_nothing():
    found = judged(flat("batch_norm", 0.7), flat("none", 0.105), data="shapes")
    assert {item.verdict for item in found} == {"not measured: at chance"}
    assert "No normalization at 10.5" in found[0].measured


def test_one_seed_at_chance_is_enough_to_decide_nothing():
    runs = [flat("batch_norm", 0.7), flat("none", 0.6), run("none", val_accuracy=[0.105] * 20, seed=1)]
    made = record(runs, seeds=[0, 1])
    found = expectations(made, [summarise(made, arm) for arm in pictures(made)[0].arms])
    assert {item.verdict for item in found} == {"not measured: at chance"}

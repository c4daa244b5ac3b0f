"""What the report of a comparison says, from made-up numbers."""

import json
import math

import pytest

from steadynorm.lab.experiments.compare import RatedArm, best_rate, describe, largest_fall, rated_arms
from steadynorm.reporting.records import Cell, Record
from steadynorm.reporting.report import Claim, Table
from steadynorm.reporting.words import HEADLINE
from tests.support.documented import check_close, content_of, record_of
from tests.support.records import record, run, summary_json


def summary_of(*runs: Cell, **changes) -> RatedArm:
    return rated_arms(record(runs, arms=[runs[0].factors["arm"]], **changes))[0][0]


def judged(*runs: Cell, **changes) -> tuple[Claim, ...]:
    return describe(record(runs, **changes)).claims


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


def made_of(*runs: Cell, **changes) -> Record:
    return record(runs, arms=list(dict.fromkeys(one.factors["arm"] for one in runs)), **changes)


def headline(*runs: Cell, **changes) -> str:
    return plain(describe(made_of(*runs, **changes)).headline)


def lead(*runs: Cell, **changes) -> str:
    return plain(describe(made_of(*runs, **changes)).lead)


def test_final_accuracy_is_over_the_runs_that_finished():
    found = summary_of(
        run("batch_norm", val_accuracy=[0.5, 0.8]),
        run("batch_norm", val_accuracy=[0.5, 0.6], seed=1),
        run("batch_norm", val_accuracy=[0.1], seed=2, status="diverged", diverged_at_step=40),
    )
    assert found["val_accuracy"].mean == pytest.approx(0.7)
    assert found["val_accuracy"].sd == pytest.approx(0.2 / math.sqrt(2))
    assert (found["val_accuracy"].low, found["val_accuracy"].high, found["val_accuracy"].n) == (0.6, 0.8, 2)


def test_diverged_runs_are_counted_with_their_step():
    found = summary_of(run("none", val_accuracy=[0.1], status="diverged", diverged_at_step=40))
    assert (found.seeds, found.is_lost, found.diverged_at_step, found["val_accuracy"]) == (1, True, (40,), None)


def test_early_accuracy_is_that_of_epoch_ten():
    values = [0.01 * number for number in range(1, 21)]
    assert summary_of(run("batch_norm", val_accuracy=values))["val_accuracy_early"].mean == pytest.approx(0.10)


@pytest.mark.parametrize(("epochs", "early"), [(20, 10), (10, 10), (9, 5), (4, 2), (1, 1)])
def test_the_early_epoch_is_ten_or_the_middle(epochs, early):
    assert describe(record([], epochs=epochs)).findings["early_epoch"] == early


def test_the_best_epoch_has_the_highest_mean():
    assert summary_of(run("batch_norm", val_accuracy=[0.1, 0.9, 0.3])).best_epoch == 2


def test_the_largest_gap_is_training_over_validation():
    gaps = {1: 0.02, 2: 0.11, 3: 0.05}
    found = summary_of(
        run("batch_norm", val_accuracy=[0.5] * 3, change=lambda epoch: {"train_accuracy": 0.5 + gaps[epoch]})
    )
    assert found["largest_gap"].mean == pytest.approx(0.11)


def test_the_gradient_norm_is_the_mean_over_the_epochs():
    norms = {1: 1.0, 2: 2.0, 3: math.inf}
    found = summary_of(run("batch_norm", val_accuracy=[0.5] * 3, change=lambda epoch: {"grad_norm_mean": norms[epoch]}))
    assert found["grad_norm"].mean == 1.5


def test_steadiness_is_the_median_ratio_of_percentiles():
    p95 = {1: 2.0, 2: 3.0, 3: 100.0}
    found = summary_of(
        run(
            "batch_norm",
            val_accuracy=[0.5] * 3,
            change=lambda epoch: {"grad_norm_p5": 0.5, "grad_norm_p95": p95[epoch]},
        )
    )
    assert found["grad_norm_ratio"].mean == 6.0


def test_time_is_the_median_over_epochs():
    times = {1: 60.0, 2: 10.0, 3: 11.0}
    found = summary_of(run("batch_norm", val_accuracy=[0.5] * 3, change=lambda epoch: {"seconds": times[epoch]}))
    assert found.as_json()["seconds_per_epoch"] == 11.0


def test_gradient_norms_leave_out_diverged_runs_while_others_are_left():
    found = summary_of(
        run("none", val_accuracy=[0.5], change=lambda _: {"grad_norm_mean": 2.0}),
        run("none", val_accuracy=[0.1], change=lambda _: {"grad_norm_mean": 50.0}, seed=1, status="diverged"),
    )
    assert found["grad_norm"].mean == 2.0


def test_gradient_norms_of_an_arm_that_diverged_are_those_until_then():
    found = summary_of(run("none", val_accuracy=[0.1], change=lambda _: {"grad_norm_mean": 50.0}, status="diverged"))
    assert found["grad_norm"].mean == 50.0


def test_the_table_names_the_best_epoch():
    table = next(
        block
        for block in describe(made_of(run("none", val_accuracy=[0.1, 0.9, 0.3]))).blocks
        if isinstance(block, Table)
    )
    assert table.rows[0][2].note == "highest at epoch 2"


def test_an_experiment_that_has_only_tuned_is_not_finished():
    tuned = run("batch_norm", val_accuracy=[0.5], purpose="tune")
    assert not describe(record([tuned], arms=["batch_norm"], tune_lr=[0.1])).finished


def test_json_holds_null_where_a_number_is_missing():
    made = record([run("batch_norm", val_accuracy=[math.nan, math.nan])], arms=["batch_norm"], lr=0.1)
    found = summary_json(made)
    json.dumps(found, allow_nan=False)
    assert found["pictures"]["shared"]["batch_norm"]["val_accuracy"] is None


def test_json_holds_every_epoch_of_every_run():
    made = record([run("batch_norm", val_accuracy=[0.25, 0.5]), run("none", status="waiting")])
    first, second = summary_json(made)["runs"]
    assert [epoch["val_accuracy"] for epoch in first["epochs"]] == [0.25, 0.5]
    assert (first["spec"]["arm"], second["epochs"], second["status"]) == ("batch_norm", [], "waiting")
    assert "layers" not in first


def test_json_of_a_waiting_experiment_is_not_finished():
    made = record([run("batch_norm", status="waiting")], arms=["batch_norm"])
    assert summary_json(made)["finished"] is False


def test_an_experiment_whose_runs_all_ended_is_finished():
    ended = [run("batch_norm", val_accuracy=[0.5]), run("none", status="diverged", diverged_at_step=3)]
    assert describe(record(ended)).finished


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
    assert (found.verdict, found.measured) == ("not met", "No normalization: diverged at step 1,234.")


def test_diverging_without_normalization_settles_which_is_less_steady():
    stopped = run("none", val_accuracy=[0.5], status="diverged", diverged_at_step=600)
    found = judged(run("batch_norm", val_accuracy=[0.5, 0.3] * 10), stopped)[2]
    assert (found.verdict, found.measured) == ("met", "No normalization: diverged at step 600.")


def test_diverging_with_batch_norm_is_not_met():
    stopped = run("batch_norm", val_accuracy=[0.5], status="diverged", diverged_at_step=600)
    assert judged(stopped, flat("none", 0.6))[2].verdict == "not met"


def test_gradient_norms_over_unlike_numbers_of_epochs_are_not_compared():
    stopped = run("none", val_accuracy=[0.5], status="diverged", diverged_at_step=600)
    found = judged(flat("batch_norm", 0.75), stopped)[3]
    assert found.verdict == "not measured" and found.measured.startswith("20 epochs with batch norm and 1 without")


def test_an_arm_that_was_not_trained_is_not_measured():
    made = record([flat("batch_norm", 0.75)], arms=["batch_norm"])
    found = describe(made).claims
    assert found[1].measured == "No network without normalization was trained."


def expected_from(**changes) -> str:
    _, section, *_ = describe(record([], **changes)).sections
    return section.shown[0].text


def test_the_articles_own_settings_do_not_deviate():
    assert expected_from().startswith("The article's expectations, at its own settings.")


def test_changed_settings_are_listed():
    changed = "batch size 64 instead of 128 and milestones 5 instead of 10 and 15."
    assert f"differs from its settings: {changed}" in expected_from(batch_size=64, milestones=[5])


def test_a_schedule_without_milestones_deviates_and_is_judged_over_all_epochs():
    cosine = {"schedule": "cosine", "milestones": []}
    assert "settings: schedule cosine instead of step and milestones none instead of 10" in expected_from(**cosine)
    runs = [flat(arm, 0.75) for arm in ("batch_norm", "none")]
    assert "before the rate is first lowered" in describe(record(runs)).claims[2].measured.lower()
    assert "lowered" not in describe(record(runs, **cosine)).claims[2].measured


def test_networks_that_may_be_guessing_decide_nothing():
    found = judged(flat("batch_norm", 0.7), flat("none", 0.105), data="shapes")
    assert {item.verdict for item in found} == {"not measured: at chance"}
    assert "No normalization at 10.5" in found[0].measured


def test_one_seed_at_chance_is_enough_to_decide_nothing():
    runs = [flat("batch_norm", 0.7), flat("none", 0.6), run("none", val_accuracy=[0.105] * 20, seed=1)]
    made = record(runs, seeds=[0, 1])
    found = describe(made).claims
    assert {item.verdict for item in found} == {"not measured: at chance"}


def test_it_names_the_better_arm_and_the_gap():
    text = headline(run("batch_norm", val_accuracy=[0.829]), run("none", val_accuracy=[0.806]))
    assert text == "Batch norm reaches 82.9 % on CIFAR-10, no normalization 80.6 %: 2.3 points apart"


def test_it_says_so_when_no_normalization_is_better():
    text = headline(run("batch_norm", val_accuracy=[0.7]), run("none", val_accuracy=[0.8]))
    assert text == "No normalization reaches 80.0 % on CIFAR-10, batch norm 70.0 %: 10.0 points apart"


def test_seeds_that_overlap_are_not_called_a_difference():
    text = headline(
        *(run("batch_norm", val_accuracy=[value], seed=seed) for seed, value in enumerate((0.80, 0.84))),
        *(run("none", val_accuracy=[value], seed=seed) for seed, value in enumerate((0.79, 0.83))),
    )
    assert text.startswith("Batch norm and no normalization end within their seeds' range")


def test_single_seeds_that_are_equal_have_no_range():
    text = headline(run("batch_norm", val_accuracy=[0.8]), run("none", val_accuracy=[0.8]))
    assert text == "Batch norm and no normalization both reach 80.0 %"


def test_an_arm_that_diverges_is_named():
    text = headline(
        run("batch_norm", val_accuracy=[0.8]),
        run("none", status="diverged", diverged_at_step=5),
    )
    assert text == "Batch norm reaches 80.0 % on CIFAR-10; no normalization diverges"


def test_it_says_so_when_everything_diverged():
    text = headline(run("none", status="diverged", diverged_at_step=5))
    assert text == "Every network diverged at learning rate 0.1"


def test_it_says_so_when_nothing_has_finished():
    text = headline(run("batch_norm", val_accuracy=[0.4, 0.5], status="running", planned=20))
    assert text == "No network has finished yet: epoch 2 of 20"


def test_the_setting_admits_a_single_seed():
    assert "one seed, so no spread is known" in lead(run("batch_norm", val_accuracy=[0.8]))


def test_the_setting_names_seeds_that_diverged():
    text = lead(
        run("batch_norm", val_accuracy=[0.8]),
        run("batch_norm", seed=1, status="diverged", diverged_at_step=9),
    )
    assert "1 of 2 with batch norm" in text


def test_a_single_epoch_is_one():
    runs = (run("batch_norm", val_accuracy=[0.7]), run("none", val_accuracy=[0.8]))
    assert "trained for 1 epoch on" in lead(*runs, epochs=1)
    assert "trained for 20 epochs on" in lead(*runs, epochs=20)


def test_an_arm_at_chance_is_not_held_against_one_that_has_learned() -> None:
    text = headline(run("batch_norm", val_accuracy=[0.7]), run("none", val_accuracy=[0.1]))
    assert text == "Batch norm reaches 70.0 % on CIFAR-10; no normalization is not surely above chance: 10.0 %"


def test_a_name_that_is_too_long_for_a_headline_is_left_to_the_lead() -> None:
    made = record((run("batch_norm", val_accuracy=[0.7]), run("none", val_accuracy=[0.1])), data="photographs-of-pets")
    assert len(describe(made).headline) <= HEADLINE and "photographs-of-pets" in describe(made).lead


def test_networks_that_are_all_at_chance_are_not_compared() -> None:
    text = headline(run("batch_norm", val_accuracy=[0.105]), run("none", val_accuracy=[0.1]))
    assert text == "No network is surely better than guessing; the best, batch norm, reaches 10.5 %"


def tune(arm, lr, accuracy, status="finished"):
    values = [] if accuracy is None else [0.1, accuracy]
    return run(arm, val_accuracy=values, lr=lr, purpose="tune", status=status)


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
    assert rated_arms(record([run("batch_norm", val_accuracy=[0.5])]))[1] == []


def test_the_same_runs_serve_both_pictures_when_the_best_rate_is_the_shared_one():
    runs = [run("batch_norm", val_accuracy=[0.5]), tune("batch_norm", 0.1, 0.6), tune("batch_norm", 0.3, 0.2)]
    shared, tuned = rated_arms(record(runs, arms=["batch_norm"]))
    assert tuned[0].cells == shared[0].cells == (runs[0],)


def test_the_tuned_picture_holds_the_runs_at_the_best_rate():
    own = run("none", val_accuracy=[0.7], lr=0.02)
    runs = [run("none", val_accuracy=[0.5]), own, tune("none", 0.02, 0.6), tune("none", 0.1, 0.2)]
    _, tuned = rated_arms(record(runs, arms=["none"]))
    assert tuned[0].cells == (own,)


def test_there_is_no_tuned_picture_while_a_tuning_run_waits():
    runs = [tune("batch_norm", 0.1, 0.6), tune("batch_norm", 0.3, None, status="waiting")]
    assert rated_arms(record(runs, arms=["batch_norm"]))[1] == []


def test_the_largest_fall_is_between_neighbouring_epochs_up_to_the_limit():
    fallen = run("batch_norm", val_accuracy=[0.5, 0.4, 0.6, 0.3])
    assert largest_fall(fallen, until=3) == pytest.approx(0.1)
    assert largest_fall(fallen, until=4) == pytest.approx(0.3)


def test_a_rising_curve_has_no_fall():
    assert largest_fall(run("batch_norm", val_accuracy=[0.1, 0.2]), until=2) == 0.0


def test_the_fall_of_one_epoch_is_no_number():
    assert math.isnan(largest_fall(run("batch_norm", val_accuracy=[0.1]), until=1))


@pytest.mark.parametrize("name", ["", "_self_tuned", "_small_batches_128", "_small_batches_8", "_small_batches_2"])
def test_the_records_in_docs_are_summarised_as_before(name):
    content = content_of(f"compare{name}_cpu_20261122")
    report = describe(record_of(content))
    check_close(report.findings["early_epoch"], content["early_epoch"], "early_epoch")
    found = summary_json(record_of(content))["pictures"]
    check_close({key: found[key] for key in content["pictures"]}, content["pictures"], "pictures")
    assert report.finished == content["finished"] and len(report.headline) <= 90, report.headline

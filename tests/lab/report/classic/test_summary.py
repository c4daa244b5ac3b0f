import math

import pytest

from steadynorm.lab.report.classic.summary import curve, findings, is_finished, shown_unit, summarise
from tests.support.classic import cell, made_record

BATCH = [cell("batch_norm", 0, (0.1, 0.5, 0.9, 0.88, 0.92)), cell("batch_norm", 1, (0.1, 0.9, 0.9, 0.9, 0.9))]
PLAIN = [cell("none", 0, (0.1, 0.1, 0.2, 0.7, 0.9)), cell("none", 1, (0.1, 0.2, 0.3, 0.94, 0.95))]


def test_final_accuracy_is_that_after_the_last_step() -> None:
    found = summarise(made_record([*BATCH, *PLAIN]), "batch_norm").test_accuracy
    assert found is not None
    assert (found.mean, found.low, found.high, found.n) == (pytest.approx(0.91), 0.9, 0.92, 2)


def test_common_accuracy_is_the_lower_end_of_the_pair_in_each_seed() -> None:
    record = made_record([*BATCH, *PLAIN])
    # Seed 0: 90 %, first at step 10 and 30; seed 1: 90 %, at 1 and 20.
    batch, plain = (summarise(record, arm).steps_to_common for arm in ("batch_norm", "none"))
    assert batch is not None
    assert plain is not None
    assert (batch.low, batch.high, plain.low, plain.high) == (1, 10, 20, 30)


def test_without_the_other_arm_of_a_seed_there_is_no_common_accuracy() -> None:
    record = made_record([*BATCH, PLAIN[1]])
    batch = summarise(record, "batch_norm")
    assert batch.steps_to_common is not None
    assert (batch.steps_to_common.n, batch.steps_to_common.mean, batch.common_missed) == (1, 1, 0)


def test_a_third_arm_may_never_be_there() -> None:
    layer = [cell("layer_norm", 0, (0.1, 0.1, 0.1, 0.1, 0.89)), cell("layer_norm", 1, (0.1, 0.1, 0.9, 0.1, 0.1))]
    found = summarise(made_record([*BATCH, *PLAIN, *layer], arms=("batch_norm", "none", "layer_norm")), "layer_norm")
    assert found.common_missed == 1
    assert found.steps_to_common is not None
    assert (found.steps_to_common.mean, found.steps_to_common.n) == (10, 1)


def test_shifts_are_those_of_the_middle_sigmoid() -> None:
    wide = cell("batch_norm", 0, (0.1,) * 5, drift=(9.0, 0.3, 0.5), width_ratio=(math.nan, 7.0, 1.0))
    found = summarise(made_record([wide]), "batch_norm")
    assert found.drift is not None
    assert found.width_ratio is not None
    assert found.path is not None
    assert (found.drift.mean, found.path.mean, found.width_ratio.mean) == (0.5, 2.0, 7.0)  # NaN counts as farthest


def test_evaluation_has_shifts_of_its_own() -> None:
    found = summarise(made_record(BATCH), "batch_norm")
    shifts = [found.eval_drift, found.eval_path, found.eval_width_ratio]
    assert [shift.mean for shift in shifts if shift] == pytest.approx([2.0, 20.0, 30.0])


def test_diverged_cells_are_counted_and_left_out() -> None:
    lost = cell("none", 1, (0.1, 0.2), diverged=True)
    found = summarise(made_record([*BATCH, PLAIN[0], lost]), "none")
    assert (found.measured, found.diverged_at_step) == (2, (10,))
    assert found.test_accuracy is not None
    assert (found.test_accuracy.mean, found.test_accuracy.n) == (0.9, 1)
    assert found.drift is not None
    assert found.drift.n == 1


def test_a_curve_is_over_the_cells_that_reached_a_step() -> None:
    found = curve([PLAIN[0], cell("none", 1, (0.3, 0.2), diverged=True)], "test_accuracy")
    assert [(step, point.n) for step, point in found.items()] == [(0, 2), (1, 2), (10, 1), (20, 1), (30, 1)]
    assert (found[0].mean, found[0].low, found[0].high) == (pytest.approx(0.2), 0.1, 0.3)


def test_the_shown_unit_is_the_first() -> None:
    assert shown_unit(PLAIN[0])["p15"] == {0: -1.0, 1: -1.1, 10: -2.0, 20: -3.0, 30: -4.0}
    assert shown_unit(PLAIN[0])["p50"] == dict.fromkeys((0, 1, 10, 20, 30), 0.0)


def test_finished_is_when_every_planned_cell_is_measured() -> None:
    assert is_finished(made_record([*BATCH, *PLAIN]))
    assert not is_finished(made_record([*BATCH, PLAIN[0]]))


def test_findings_hold_what_a_program_wants() -> None:
    record = made_record([*BATCH, *PLAIN])
    found = findings(record, [summarise(record, arm) for arm in ("batch_norm", "none")])
    assert found["arms"]["none"]["test_accuracy"]["n"] == 2
    assert found["test_accuracy"]["batch_norm"][10]["mean"] == pytest.approx(0.9)
    drift = found["sigmoids"]["none"]["drift"]
    assert (drift["low"], drift["high"], drift["n"]) == (0.1, 0.9, 6)
    assert list(found["shown_unit"]) == ["batch_norm-seed0", "none-seed0"]

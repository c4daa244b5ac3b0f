"""The report of whole, broken off, diverged and single-seed records."""

import json
import math

import pytest

from steadynorm.lab.report.document import as_json
from steadynorm.lab.report.landscape import document
from steadynorm.lab.report.landscape.document import make_report
from tests.support.landscape import cell, made

ARMS = ("batch_norm", "noisy_batch_norm", "none")
ROUGH = {"beta": 30.0, "g": 3.0, "w": 40.0}


@pytest.fixture
def undrawn(monkeypatch):
    """For what has nothing to do with figures, which take their time."""
    sections = dict.fromkeys(("rate", "weights", "scale", "training"), ())
    monkeypatch.setattr(document, "draw_all", lambda record, arms: sections)


@pytest.fixture(scope="module")
def report():
    """Of a whole record."""
    return make_report(made(whole()))


def whole(seeds=(0, 1)):
    return [
        cell(arm, seed, change=lambda step, arm=arm: ROUGH if arm == "none" else {}) for seed in seeds for arm in ARMS
    ]


def test_the_headline_has_both_views(report) -> None:
    """Ten times the curvature; four times that for weights of norm 1, because the weights are twice as large."""
    assert report.headline == (
        "β, how fast the gradient changes along itself, is 10 times smaller with batch norm, and 40 times smaller once "
        "the scale of the weights is taken out"
    )
    assert report.finished


def test_what_differs_is_said_in_both_views(report) -> None:
    """Falls of the loss by hand: eta - 1.5 eta² ranges over 0.11375, 9 eta - 135 eta² over 18.11; in steps in
    proportion, two thirds as long for three times the gradient and twice the weights, over 7.35.
    """
    told = " ".join(block.text for block in report.sections[0].blocks[1:3]).replace("\N{NO-BREAK SPACE}", " ")
    assert "the gradient changes 30 times less, β is 10 times smaller, the loss varies 159 times less" in told
    assert "the gradient changes 6.7 times less of itself, β ‖w‖² is 40 times smaller, the loss varies 65 times" in told
    assert told.count("the longest step raises it at 0 % of the looks instead of 100 %") == 2


def test_every_figure_of_a_whole_record_is_drawn(report) -> None:
    names = [drawing.name for drawing in report.drawings]
    assert names == [
        "loss",
        "gradient_change",
        "smoothness",
        "free_loss",
        "free_gradient_change",
        "free_smoothness",
        "gradient_norm",
        "weight_norm",
        "relative_step",
        "layers",
        "train_loss",
        "val_accuracy",
    ]
    assert all(drawing.png.startswith(b"\x89PNG") for drawing in report.drawings)


def test_findings_hold_means_and_ratios(report) -> None:
    found = report.findings
    assert [arm["arm"] for arm in found["arms"]] == list(ARMS)
    assert found["arms"][0]["smoothness"] == {"mean": 3.0, "low": 3.0, "high": 3.0, "n": 2, "sd": 0.0}
    assert found["none_over_batch_norm"]["smoothness"]["mean"] == 10.0
    assert found["arms"][2]["val_accuracy"]["n"] == 2


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_record_that_breaks_off_anywhere_has_a_report(count) -> None:
    waiting = [cell(arm, seed) for seed in (0, 1) for arm in ARMS]
    cells = [one if number < count else type(one)(factors=one.factors) for number, one in enumerate(waiting)]
    report = make_report(made(cells))
    assert not report.finished
    assert "{" not in report.headline and len(report.table.rows) == 3
    if count == 0:
        assert report.headline == "Nothing is measured yet"
        assert [section.key for section in report.sections if section.blocks] == []
    if count == 1:
        assert report.headline == "So far the loss around batch norm was seen"


def test_a_network_that_diverged_is_in_table_and_figures() -> None:
    cells = [cell("batch_norm"), cell("noisy_batch_norm"), cell("none", accuracy=(0.2,), diverged_at=27)]
    report = make_report(made(cells))
    assert "1 of 1 diverged at step 27" in str(report.sections[0].blocks[0])
    assert report.table.rows[2][2].text == "diverged"
    assert any("A cross" in drawing.caption for drawing in report.drawings)
    assert report.finished


def test_one_network_of_several_that_diverged_is_told_everywhere(undrawn) -> None:
    cells = [*whole(), cell("none", 2, accuracy=(0.2,), diverged_at=27)]
    report = make_report(made(cells))
    told = "1 of 3 with no normalization"
    assert report.lead.endswith(f"3 seeds each. Diverged, and without a final accuracy: {told}.")
    assert report.table.rows[2][2].text.endswith("; 1 of 3 diverged")
    assert report.expectations[-1].measured.endswith("(n = 2; 1 diverged with no normalization).")


def test_a_network_that_diverged_at_once_has_a_report() -> None:
    nan = {"loss": math.nan, "g": math.nan, "beta": math.nan}
    cells = [cell(arm, accuracy=(), diverged_at=1, change=lambda step: nan) for arm in ARMS]
    report = make_report(made(cells))
    assert report.headline == "The loss left the numbers along the gradient, and cannot be compared"
    json.dumps(as_json(made(cells), report), allow_nan=False)


def test_an_arm_that_has_not_learned_is_told_in_the_headline(undrawn) -> None:
    """Guessing among ten classes has the loss ln 10 = 2.303; 2.3 (1 - accuracy) is above or below 0.95 of it."""
    for accuracy, is_told in ((0.04, True), (0.06, False)):
        report = make_report(made([cell("batch_norm"), cell("none", accuracy=(0.3, accuracy))]))
        assert report.headline.endswith("; but no normalization has hardly learned anything") == is_told


def test_one_seed_has_no_spread(undrawn) -> None:
    report = make_report(made(whole(seeds=(3,))))
    assert "one seed, so no spread is known" in report.lead
    assert report.findings["arms"][0]["smoothness"]["sd"] is None


def test_training_without_rounding_is_not_said_to_round(undrawn) -> None:
    cells = whole()
    exact = [
        type(one)(
            factors=one.factors,
            measurements=tuple(row for row in one.measurements if row.quantity != "rounding"),
            seconds=1.0,
        )
        for one in cells
    ]
    assert "rounding to bfloat16" in " ".join(make_report(made(cells)).method)
    assert "rounding to bfloat16" not in " ".join(make_report(made(exact)).method)


def test_noise_is_described_where_there_is_some(undrawn) -> None:
    assert "Noisy batch norm shifts" in " ".join(make_report(made(whole())).method)
    assert "Noisy" not in " ".join(make_report(made(whole(), arms=["batch_norm", "none"])).method)

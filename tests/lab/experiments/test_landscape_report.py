"""What the report of the loss around the weights says, from made-up numbers and from those of docs/results."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadynorm.lab.describe.arms import Arm
from steadynorm.lab.experiments.landscape import (
    QUANTITIES,
    arms_of,
    describe,
    probes_of,
    size,
)
from steadynorm.reporting.records import Cell, Measurement
from steadynorm.reporting.report import Claim, Figure, Report, Table
from steadynorm.reporting.seeds import Spread
from tests.support.documented import check_equals, content_of, few_values, record_of
from tests.support.landscape import cell, made
from tests.support.records import check_page, summary_json

ARMS = ("batch_norm", "noisy_batch_norm", "none")
ROUGH = {"beta": 30.0, "g": 3.0, "w": 40.0}
LOSS, CHANGE, ORDERS, BETA, FREE_LOSS, FREE_CHANGE, FREE_BETA, GRADIENT, RAISED, FREE_RAISED, AS_WELL, BETTER = range(
    12
)


def whole(seeds=(0, 1)) -> list[Cell]:
    return [
        cell(arm, seed, change=lambda step, arm=arm: ROUGH if arm == "none" else {}) for seed in seeds for arm in ARMS
    ]


def changed(one: Cell, subject: str, quantity: str, value: float) -> Cell:
    rows = [
        replace(row, value=value) if (row.subject, row.quantity) == (subject, quantity) else row
        for row in one.measurements
    ]
    return replace(one, measurements=tuple(rows))


def summary_of(*cells: Cell) -> Arm:
    record = made(cells, arms=[cells[0].factors["arm"]])
    return arms_of(record, probes_of(record))[0]


def seen(quantity: str, **numbers: float) -> float:
    found = summary_of(cell("batch_norm", change=lambda step: numbers))[quantity]
    assert found is not None and found.n == 1
    return found.mean


def figure(report: Report, name: str) -> Figure:
    return next(one for one in report.figures if one.name == name)


def tables(report: Report) -> list[Table]:
    return [block for block in report.blocks if isinstance(block, Table)]


def plain(text: str) -> str:
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def report() -> Report:
    """Of a whole record."""
    return describe(made(whole()))


# What a probe gives.


def test_a_cell_is_read_back() -> None:
    record = made([cell("none", 7, accuracy=(0.2, 0.4), diverged_at=43)])
    arm = arms_of(record, probes_of(record))[2]
    assert ([one.factors["seed"] for one in arm.ended], arm.diverged_at_step) == ([7], (43,))
    assert list(probes_of(record)["step"]) == [0, 10, 20, 30, 40]
    accuracy, layers = figure(describe(record), "val_accuracy").data, figure(describe(record), "layers").data
    assert list(zip(accuracy["step"], accuracy["value"], strict=True)) == [(20, 0.2), (40, 0.4)]
    assert dict(zip(layers["layer"], layers["value"], strict=True)) == dict.fromkeys(
        ("conv1", "conv2", "classifier"), 0.05
    )


def test_steps_are_in_the_order_of_their_lengths_whatever_that_of_the_rows() -> None:
    one = cell("none", change=lambda step: {"beta": 5.1})
    turned = replace(one, measurements=tuple(reversed(one.measurements)))
    assert summary_of(turned)["raised"] == summary_of(one)["raised"]


def test_accuracy_is_that_of_networks_that_trained_to_the_end() -> None:
    arm = summary_of(cell("none", 0), cell("none", 1, accuracy=(0.1,), diverged_at=25))
    assert (arm["val_accuracy"].mean, arm["val_accuracy"].n) == (0.5, 1)
    assert arm["train_loss"].mean == pytest.approx(2.3 * 0.5)
    assert arm.diverged_at_step == (25,)


def test_the_range_of_the_loss_is_from_the_lowest_to_the_highest_step() -> None:
    """Steps 0.05 to 0.4 of a loss falling by eta - 1.5 eta²: lowest 2 - 1/6 is not reached, lowest of the four wins."""
    falls = [eta - 1.5 * eta**2 for eta in (0.05, 0.1, 0.2, 0.4)]
    assert seen("loss_range") == pytest.approx(max(falls) - min(falls))


def test_the_change_of_the_gradient_is_that_of_the_longest_step_of_a_quadratic() -> None:
    assert seen("gradient_change", g=2.0) == pytest.approx(0.4 * 3.0 * 2.0)


def test_smoothness_is_the_largest() -> None:
    assert seen("smoothness", beta=5.0) == 5.0
    one = changed(cell("none"), "rate 1.0", "smoothness", 7.0)
    assert summary_of(one)["smoothness"].mean == 7.0


def test_proportional_steps_do_not_see_the_scale_of_the_weights() -> None:
    """Weights times c: gradients over c, beta over c²."""
    for quantity in ("free_loss_range", "free_gradient_change", "free_smoothness"):
        assert seen(quantity, g=0.1, w=200.0, beta=0.03) == pytest.approx(seen(quantity, g=1.0, w=20.0, beta=3.0))
    assert seen("free_smoothness") == pytest.approx(3.0 * 20.0**2)
    assert seen("free_gradient_change") == pytest.approx(0.02 * 20.0 * 3.0)
    for quantity in ("loss_range", "gradient_change", "smoothness"):
        assert seen(quantity, g=0.1, w=200.0, beta=0.03) < seen(quantity, g=1.0, w=20.0, beta=3.0) / 5


def test_the_longest_step_raises_a_quadratic_where_it_is_longer_than_two_over_its_curvature() -> None:
    """The longest are 0.4, and 0.02 * 20 = 0.4."""
    for quantity in ("raised", "free_raised"):
        assert (seen(quantity, beta=4.9), seen(quantity, beta=5.1)) == (0.0, 1.0)


def test_rises_are_counted_over_the_probes() -> None:
    arm = summary_of(cell("none", change=lambda step: {"beta": 9.0 if step == 30 else 1.0}))
    assert arm["raised"].mean == 0.25


def test_scales() -> None:
    assert seen("gradient_norm", g=1.5) == 1.5
    assert seen("weight_norm", w=12.0) == 12.0
    assert seen("relative_step", g=1.5, w=12.0) == pytest.approx(0.1 * 1.5 / 12)
    assert seen("rounding") == 0.01


def test_the_median_is_over_probes_and_the_spread_over_seeds() -> None:
    arm = summary_of(*(cell("none", seed, change=lambda step, seed=seed: {"beta": step + seed}) for seed in (0, 4)))
    found = arm["smoothness"]
    assert (found.low, found.mean, found.high, found.n) == (15.0, 17.0, 19.0, 2)


def test_ratios_are_seed_by_seed() -> None:
    cells = [
        cell(arm, seed, change=lambda step, beta=beta: {"beta": beta})
        for arm, seed, beta in (("batch_norm", 0, 1.0), ("batch_norm", 1, 2.0), ("none", 0, 3.0), ("none", 1, 20.0))
    ]
    found = describe(made([*cells, cell("none", 5)])).findings["none_over_batch_norm"]["smoothness"]
    assert (found.low, found.mean, found.high, found.n) == (3.0, 6.5, 10.0, 2)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize(("column", "quantity"), [("loss", "loss_range"), ("change", "gradient_change")])
def test_a_step_that_leaves_the_numbers_counts_as_infinite(column: str, quantity: str, broken: float) -> None:
    first = probes_of(made([changed(cell("none"), "rate 4.0", column, broken)])).iloc[0]
    assert first[quantity] == math.inf
    assert first["raised"] == (column == "loss")


def test_half_the_probes_may_be_infinite_and_the_network_has_no_number() -> None:
    arm = summary_of(cell("none", change=lambda step: {"beta": math.inf} if step >= 20 else {}), cell("none", 1))
    assert (arm["smoothness"].mean, arm["smoothness"].n) == (3.0, 1)


def test_a_gradient_of_zero_has_no_relative_change() -> None:
    still = probes_of(made([changed(cell("none"), "", "gradient_norm", 0.0)]))
    assert still["free_gradient_change"].isna().all() and still["gradient_change"].notna().all()


# The report.


def test_the_headline_has_both_views(report: Report) -> None:
    """Ten times the curvature; four times that for weights of norm 1, because the weights are twice as large."""
    assert report.headline == "β is 10 times smaller with batch norm, 40 times smaller for weights of norm 1"
    assert report.finished


def test_what_differs_is_judged_in_both_views(report: Report) -> None:
    """Falls of the loss by hand: eta - 1.5 eta² ranges over 0.11375, 9 eta - 135 eta² over 18.11; in steps in
    proportion, two thirds as long for three times the gradient and twice the weights, over 7.35.
    """
    told = {claim: report.claims[claim].measured for claim in (LOSS, CHANGE, BETA, FREE_LOSS, FREE_CHANGE, FREE_BETA)}
    times = {claim: re.search(r"([\d.]+) times as much", text)[1] for claim, text in told.items()}
    assert times == {
        LOSS: "159",
        CHANGE: "30.0",
        BETA: "10.0",
        FREE_LOSS: "64.6",
        FREE_CHANGE: "6.67",
        FREE_BETA: "40.0",
    }


def test_every_quantity_of_a_whole_record_has_its_figure(report: Report) -> None:
    assert [one.name for one in report.figures] == [
        "smoothness",
        "free_smoothness",
        "loss",
        "gradient_change",
        "free_loss",
        "free_gradient_change",
        "gradient_norm",
        "weight_norm",
        "relative_step",
        "layers",
        "train_loss",
        "val_accuracy",
    ]


def test_a_line_is_the_median_of_the_seeds_and_its_band_their_range() -> None:
    cells = [cell("none", seed, change=lambda step, seed=seed: {"beta": 2.0 + seed}) for seed in (0, 1, 7)]
    first = figure(describe(made(cells)), "smoothness").data.iloc[0]
    assert (first["arm"], first["step"]) == ("no normalization", 0)
    assert (first["value"], first["low"], first["high"]) == (3.0, 2.0, 9.0)


def test_a_band_over_the_lengths_is_of_medians_around_the_loss_or_the_middle_step() -> None:
    """The loss falls by eta - 1.5 eta², at most by 0.1467 at 0.4 of four; its gradient changes by 3 eta."""
    drawn = describe(
        made([cell("none", seed, change=lambda step, seed=seed: {"loss": 2.0 + seed}) for seed in (0, 1, 9)])
    )
    loss, change = (figure(drawn, name).data.iloc[0] for name in ("loss", "gradient_change"))
    falls = [eta - 1.5 * eta**2 for eta in (0.05, 0.1, 0.2, 0.4)]
    assert [loss["value"], loss["low"], loss["high"]] == pytest.approx([3.0, 3.0 - max(falls), 3.0])
    assert [change["value"], change["low"], change["high"]] == pytest.approx([0.3, 0.15, 1.2])


def test_a_layer_is_the_median_over_the_probes_and_then_over_the_seeds() -> None:
    cells = [cell("none", seed, change=lambda step, seed=seed: {"g": 1.0 + step + seed}) for seed in (0, 1, 8)]
    first = figure(describe(made(cells)), "layers").data.iloc[0]
    assert first["layer"] == "conv1"
    assert [first["value"], first["low"], first["high"]] == pytest.approx([17 / 20, 16 / 20, 24 / 20])


def test_findings_hold_means_and_ratios(report: Report) -> None:
    found = report.findings
    assert [arm["arm"] for arm in found["arms"]] == list(ARMS)
    assert found["arms"][0]["smoothness"] == Spread(mean=3.0, low=3.0, high=3.0, n=2, sd=0.0)
    assert found["none_over_batch_norm"]["smoothness"].mean == 10.0
    assert found["arms"][2]["val_accuracy"].n == 2
    assert list(found["arms"][0])[5:] == list(found["none_over_batch_norm"]) == list(QUANTITIES)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_record_that_breaks_off_anywhere_has_a_report(count: int) -> None:
    waiting = [cell(arm, seed) for seed in (0, 1) for arm in ARMS]
    cells = [one if number < count else Cell(factors=one.factors) for number, one in enumerate(waiting)]
    found = describe(made(cells))
    assert not found.finished
    assert "{" not in found.headline and len(found.table.rows) == 3
    if count == 0:
        assert found.headline == "Nothing is measured yet"
        assert list(found.blocks) == []
    if count == 1:
        assert found.headline == "So far the loss was probed around batch norm"
        assert [row[-1].text for row in tables(found)[0].rows] == ["1 of 2 measured", "waiting", "waiting"]


def test_a_record_that_broke_off_before_its_cells_were_planned_has_a_report() -> None:
    found = describe(made([]))
    assert (found.headline, found.finished, list(found.blocks)) == ("Nothing is measured yet", False, [])


def test_without_the_pair_the_arms_are_named_or_counted() -> None:
    arms = ("layer_norm", "self_tuned_batch_norm", "none")
    record = made([cell(arm) for arm in arms], arms=list(arms))
    assert describe(record).headline == "The loss was probed around 3 arms"
    assert describe(replace(record, config=record.config | {"arms": ["layer_norm", "none"]})).headline == (
        "The loss was probed around layer norm and no normalization"
    )


def test_a_network_that_diverged_is_in_table_and_figures() -> None:
    cells = [cell("batch_norm"), cell("noisy_batch_norm"), cell("none", accuracy=(0.2,), diverged_at=27)]
    found = describe(made(cells))
    assert tables(found)[0].rows[2][-1].text == "diverged at step 27"
    assert found.table.rows[2][2].text == "diverged"
    beta = figure(found, "smoothness")
    assert [(cross["arm"], cross["step"], cross["value"]) for cross in beta.marks["crosses"]] == [
        ("no normalization", 20, 3.0)
    ]
    assert "A cross" in beta.caption
    assert found.finished


def test_one_network_of_several_that_diverged_is_told_everywhere() -> None:
    found = describe(made([*whole(), cell("none", 2, accuracy=(0.2,), diverged_at=27)]))
    assert found.lead.endswith("3 seeds each. Diverged, and left out of final means: 1 of 3 with no normalization.")
    assert found.table.rows[2][2].text.endswith("; 1 of 3 diverged")
    assert found.claims[-1].measured.endswith("(n = 2; 1 diverged with no normalization).")
    assert [cross["step"] for cross in figure(found, "loss").marks["crosses"]] == [20]  # the others go on to 30


def test_a_network_that_diverged_at_once_has_a_report() -> None:
    nan = {"loss": math.nan, "g": math.nan, "beta": math.nan}
    record = made([cell(arm, accuracy=(), diverged_at=1, change=lambda step: nan) for arm in ARMS])
    found = describe(record)
    assert found.headline == "β cannot be compared: no seed has a finite one with batch norm and without"
    assert [one.name for one in found.figures] == ["weight_norm"] and len(tables(found)) == 2
    json.dumps(summary_json(record), allow_nan=False)


def test_an_arm_that_has_not_learned_is_told_in_the_headline() -> None:
    """Guessing among ten classes has the loss ln 10 = 2.303; 2.3 (1 - accuracy) is above or below 0.95 of it."""
    for accuracy, is_told in ((0.04, True), (0.06, False)):
        found = describe(made([cell("batch_norm"), cell("none", accuracy=(0.3, accuracy))]))
        assert found.headline.endswith("; no normalization hardly trained") == is_told
    stuck = [cell(arm, accuracy=(0.3, 0.04)) for arm in ARMS]
    assert describe(made(stuck)).headline.endswith("; 3 arms hardly trained")


def test_one_seed_has_no_spread() -> None:
    found = describe(made(whole(seeds=(3,))))
    assert "one seed, so no spread is known" in found.lead
    assert found.findings["arms"][0]["smoothness"].sd is None


def test_training_without_rounding_is_not_said_to_round() -> None:
    cells = whole()
    exact = [
        replace(one, measurements=tuple(row for row in one.measurements if row.quantity != "rounding")) for one in cells
    ]
    assert "rounding to bfloat16" in " ".join(describe(made(cells)).method)
    assert "rounding to bfloat16" not in " ".join(describe(made(exact)).method)


def test_noise_is_described_where_there_is_some() -> None:
    assert "Noisy batch norm shifts" in " ".join(describe(made(whole())).method)
    assert "Noisy" not in " ".join(describe(made(whole(), arms=["batch_norm", "none"])).method)


def test_its_page_is_made_of_the_files_of_a_record(tmp_path: Path) -> None:
    text = check_page(made([*whole(), cell("none", 2, accuracy=(0.2,), diverged_at=27)]), tmp_path)
    assert text.index('id="smoothness"') < text.index("<table") < text.index('id="expectations"')


# What is claimed.


def judged(*cells: Cell, **changes: Any) -> tuple[Claim, ...]:
    record = made(cells, **changes)
    found = describe(record)
    return found.claims


def arms(batch: dict[str, float], none: dict[str, float], *, noisy: float = 0.5) -> tuple[Claim, ...]:
    return judged(
        cell("batch_norm", change=lambda step: batch),
        cell("noisy_batch_norm", accuracy=(0.3, noisy)),
        cell("none", change=lambda step: none, accuracy=(0.3, 0.4)),
    )


def test_a_rougher_loss_without_normalization_is_what_the_paper_expects() -> None:
    found = arms({"beta": 1.0, "g": 1.0}, {"beta": 30.0, "g": 3.0})
    assert [item.verdict for item in found] == ["met"] * 12
    assert "90.0 times as much" in found[CHANGE].measured


def test_a_smoother_loss_without_normalization_is_not() -> None:
    found = arms({"beta": 30.0, "g": 3.0}, {"beta": 1.0, "g": 1.0})
    assert {item.verdict for item in found[:AS_WELL]} == {"not met"}


def test_a_larger_scale_of_the_weights_alone_changes_the_papers_view_and_not_the_other() -> None:
    found = arms({"beta": 0.03, "g": 0.1, "w": 200.0 * 1.001}, {"beta": 3.0, "g": 1.0, "w": 20.0})
    assert [found[claim].verdict for claim in (LOSS, CHANGE, ORDERS, BETA)] == ["met"] * 4
    assert "1.00 times as much" in found[FREE_LOSS].measured
    assert [found[claim].verdict for claim in (FREE_CHANGE, FREE_BETA)] == ["not met"] * 2


@pytest.mark.parametrize(("beta", "verdict"), [(29.0, "not met"), (31.0, "met")])
def test_almost_two_orders_of_magnitude_are_thirty_times(beta: float, verdict: str) -> None:
    assert arms({"beta": 1.0}, {"beta": beta})[ORDERS].verdict == verdict


@pytest.mark.parametrize(
    ("noisy", "as_well", "better"), [(0.49, "met", "met"), (0.47, "not met", "met"), (0.39, "not met", "not met")]
)
def test_noise_may_cost_two_points(noisy: float, as_well: str, better: str) -> None:
    found = arms({}, {}, noisy=noisy)
    assert [found[claim].verdict for claim in (AS_WELL, BETTER)] == [as_well, better]


def test_how_often_a_step_raises_the_loss_is_judged_where_batch_norm_never_does() -> None:
    found = arms({"beta": 1.0}, {"beta": 30.0})
    for claim in (RAISED, FREE_RAISED):
        assert plain(found[claim].measured) == "At 0.0 % of the probes with batch norm, at 100.0 % without."
    assert arms({}, {})[RAISED].verdict == "not met"


def test_seeds_that_disagree_are_told() -> None:
    cells = [cell("batch_norm", seed) for seed in (0, 1)]
    cells += [cell("none", seed, change=lambda step, b=beta: {"beta": b}) for seed, beta in ((0, 2.0), (1, 6.0))]
    found = judged(*cells)[BETA]
    assert found.verdict == "met"
    assert found.measured.endswith("1.33 times as much, from 0.667 to 2.00 over the seeds. The seeds disagree.")


def test_what_is_missing_is_not_measured() -> None:
    assert {item.verdict for item in judged(cell("batch_norm"))} == {"not measured"}
    assert len(judged(cell("batch_norm"))) == 12


def test_an_arm_that_diverged_is_told() -> None:
    lost = cell("noisy_batch_norm", accuracy=(), diverged_at=3)
    found = judged(cell("batch_norm"), lost, cell("none"))
    assert (found[AS_WELL].verdict, found[AS_WELL].measured) == (
        "not measured",
        "Noisy batch norm: diverged at step 3.",
    )
    assert found[LOSS].verdict == "not met"


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        ((4.0, 4.0, 1), "4.0 times smaller"),
        ((0.25, 0.25, 1), "4.0 times larger"),
        ((0.9, 1.3, 2), "about as large"),
        ((1.1, 1.3, 2), "1.2 times smaller"),
    ],
)
def test_how_many_times_smaller(factor: tuple[float, float, int], words: str) -> None:
    low, high, n = factor
    assert size(Spread(mean=(low + high) / 2, low=low, high=high, n=n, sd=None)) == words


def test_networks_that_may_be_guessing_decide_nothing() -> None:
    found = judged(
        cell("batch_norm"),
        cell("noisy_batch_norm"),
        cell("none", accuracy=(0.1, 0.105), change=lambda _: {"beta": 9.0}),
    )
    verdicts = [item.verdict for item in found]
    assert verdicts == ["not measured: at chance"] * 10 + ["met", "not measured: at chance"]


# The records in docs/results.

PROBES = 30  # of which all shares of probes in these records are whole numbers


@pytest.mark.parametrize("name", ["landscape_cpu_20261123", "landscape_one_thread_cpu_20261123"])
def test_a_report_equals_the_record_in_docs(name: str) -> None:
    content = content_of(name) | {"runs": []}
    check_equals(summary_json(record_of(content, list(_cells(content)))), content)


def _cells(content: dict[str, Any]) -> Iterator[Cell]:
    """Give networks with the record's means and ranges, and its ratios of no normalization to batch norm."""
    named = {arm["arm"]: arm for arm in content["arms"]}
    seeds = content["config"]["seeds"]
    values = {arm: {key: few_values(found[key]) for key in QUANTITIES} for arm, found in named.items()}
    for key, ratio in content["none_over_batch_norm"].items():
        if ratio:
            batch, plain = values["batch_norm"][key], values["none"][key]
            values["none"][key] = next(order for order in itertools.permutations(plain) if _have(ratio, order, batch))
    for arm, found in named.items():
        ends = list(zip(few_values(found["train_loss"]), few_values(found["val_accuracy"]), strict=True))
        for place, seed in enumerate(seeds):
            own = {key: several[place] for key, several in values[arm].items()}
            rows = [row for step in range(PROBES) for row in _probe(step, own)]
            if place < len(ends):
                rows += _rows(390, "", train_loss=ends[place][0], val_accuracy=ends[place][1])
            else:
                rows += _rows(found["diverged_at_step"][place - len(ends)], "", diverged=1.0)
            status = "finished" if place < len(ends) else "diverged"
            yield Cell(factors={"arm": arm, "seed": seed}, status=status, measurements=tuple(rows))


def _have(ratio: dict[str, float], over: tuple[float, ...], under: list[float]) -> bool:
    found = sorted(one / other for one, other in zip(over, under, strict=True))
    return [found[0], sum(found) / 3, found[-1]] == pytest.approx([ratio["low"], ratio["mean"], ratio["high"]])


def _probe(step: int, own: dict[str, float]) -> list[Measurement]:
    """Give a probe with these quantities; the longest step raises the loss at the first of the probes."""
    gradient, weight, loss = own["gradient_norm"], own["weight_norm"], 2.0
    rows = _rows(
        step,
        "",
        loss=loss,
        gradient_norm=gradient,
        weight_norm=weight,
        rounding=own["rounding"],
        learning_rate=own["relative_step"] * weight / gradient,
    )
    rows += _rows(step, "conv", gradient_norm=gradient, weight_norm=weight)
    for unit, prefix, change, beta in (
        ("rate", "", own["gradient_change"], own["smoothness"]),
        ("weights", "free_", own["free_gradient_change"] * gradient, own["free_smoothness"] / weight**2),
    ):
        span, is_raised = own[f"{prefix}loss_range"], step < round(PROBES * own[f"{prefix}raised"])
        for length, end in ((0.5, loss - span / 2 if is_raised else loss - span), (4.0, loss + span / 2 * is_raised)):
            rows += _rows(step, f"{unit} {length}", loss=end, change=change, smoothness=beta)
    return rows


def _rows(step: int, subject: str, **values: float) -> list[Measurement]:
    return [
        Measurement(step=step, subject=subject, quantity=quantity, value=value) for quantity, value in values.items()
    ]

import io
from typing import Any

from rich.console import Console

from steadynorm.lab.results import results_table

SPREAD = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 2, "sd": 0.1}
ARM: dict[str, Any] = {
    "arm": "none",
    "lr": 0.03,
    "seeds": 2,
    "diverged": 0,
    "diverged_at_step": [],
    "reached_epoch": 4,
    "val_accuracy": SPREAD,
    "grad_norm": SPREAD | {"mean": 1.25},
    "seconds_per_epoch": 2.25,
}


def shown(summary: dict[str, Any]) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=150).print(results_table(summary))
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_a_row_shows_accuracy_with_its_spread() -> None:
    assert shown({"pictures": {"shared": {"none": ARM}}})[1] == "none 0.03 2 50.0% ± 10.0% 1.25 2.2"


def test_a_single_seed_shows_no_spread() -> None:
    assert "50.0% 1.25" in shown({"pictures": {"shared": {"none": ARM | {"val_accuracy": SPREAD | {"sd": None}}}}})[1]


def test_a_diverged_arm_says_so() -> None:
    row = ARM | {"val_accuracy": None, "diverged": 2, "diverged_at_step": [3, 9], "grad_norm": None}
    assert "diverged at step 3, 9" in shown({"pictures": {"shared": {"none": row}}})[1]


def test_an_unfinished_arm_says_how_far_it_came() -> None:
    assert "epoch 4, not finished" in shown({"pictures": {"shared": {"none": ARM | {"val_accuracy": None}}}})[1]


def test_both_pictures_are_headed() -> None:
    lines = shown({"pictures": {"shared": {"none": ARM}, "tuned": {"none": ARM}}})
    assert [lines[1], lines[3]] == ["at the same learning rate", "each at its own best learning rate"]

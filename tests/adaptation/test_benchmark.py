"""The benchmark's tables, and those of the page against its records."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.adaptation.networks import NETWORKS
from benchmarks.adaptation.summary import kept, kinds_table, networks_table, ordered_table, read, worst

DOCS = Path(__file__).parents[2] / "docs"
RECORD = DOCS / "results" / "adaptation_fourth_cpu_20261130.jsonl"


def rows(**accuracy: float) -> list[dict[str, Any]]:
    """Two seeds of a mixed, corrupted stream and one of bursts."""
    found = []
    for kind, off in (("mixed", 0.0), ("bursts", -0.2)):
        for seed in (0, 1):
            for method, value in accuracy.items():
                won = off * (method != "stored") + 0.1 * seed * (method == "gate")
                found.append(
                    {"network": "n", "family": "plain", "kind": kind, "shift": "fog", "seed": seed, "method": method}
                    | {"accuracy": value + won}
                )
    return found


def test_the_worst_stream_is_the_mean_of_its_seeds() -> None:
    found = rows(stored=0.5, batch=0.7, gate=0.6)
    assert worst(found, "gate") == (pytest.approx(-5.0), "bursts, fog")  # -10 and 0
    assert worst(found, "gate", single=True)[0] == pytest.approx(-10.0)


def test_what_is_kept_is_a_share_of_what_batch_statistics_win_where_classes_are_mixed() -> None:
    assert kept(rows(stored=0.5, batch=0.7, gate=0.6), "gate") == pytest.approx(0.15 / 0.2)
    assert kept(rows(stored=0.5, batch=0.4, gate=0.6), "gate") is None


def test_the_documented_tables_are_those_of_the_record() -> None:
    page, found = (DOCS / "adaptation.md").read_text(), read(RECORD)
    assert kinds_table(found, ["stored", "batch", "gate"]) in page
    assert networks_table(found, "gate") in page
    assert ordered_table(found) in page


def test_the_record_is_of_the_held_out_half_and_of_five_seeds() -> None:
    found = read(RECORD)
    held = {each.name for each in NETWORKS.values() if each.half == "held out"}
    assert {(row["network"], row["seed"]) for row in found} == {(name, seed) for name in held for seed in range(5)}
    assert len([row for row in found if row["method"] == "gate"]) == 750


def test_the_held_out_half_is_as_wide_as_promised() -> None:
    held = [each for each in NETWORKS.values() if each.half == "held out"]
    assert len(held) >= 6
    assert {each.family for each in held} == {"plain", "residual", "depthwise"}
    assert sum(each.source != "cifar10" for each in held) >= 2

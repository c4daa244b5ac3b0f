"""The benchmark's tables, and those of the page against its records."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.adaptation.networks import NETWORKS
from benchmarks.adaptation.summary import kept, kinds_table, networks_table, ordered_table, read, worst

DOCS = Path(__file__).parents[2] / "docs"
RECORDS = ["third", "former"]


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


def record(name: str) -> list[dict[str, Any]]:
    return read(DOCS / "results" / f"adaptation_{name}_cpu_20261130.jsonl")


def test_the_documented_tables_are_those_of_the_records() -> None:
    page, found = (DOCS / "adaptation.md").read_text(), record("third")
    former = [row | {"method": "former gate"} for row in record("former") if row["method"] == "gate"]
    assert kinds_table([*found, *former], ["stored", "batch", "gate", "former gate"]) in page
    assert networks_table(found, "gate") in page
    assert ordered_table(found) in page


def test_both_rules_were_shown_the_same_streams_of_the_same_networks() -> None:
    present, former = (
        {
            tuple(row[key] for key in ("network", "seed", "kind", "shift", "accuracy"))
            for row in record(name)
            if row["method"] == "stored"
        }
        for name in RECORDS
    )
    assert present == former and len(present) == 400


@pytest.mark.parametrize("name", RECORDS)
def test_the_records_are_of_networks_of_the_benchmark(name: str) -> None:
    found = read(DOCS / "results" / f"adaptation_{name}_cpu_20261130.jsonl")
    assert {row["network"] for row in found} <= set(NETWORKS)


def test_the_held_out_half_is_as_wide_as_promised() -> None:
    held = [each for each in NETWORKS.values() if each.half == "held out"]
    assert len(held) >= 6
    assert {each.family for each in held} == {"plain", "residual", "depthwise"}
    assert sum(each.source != "cifar10" for each in held) >= 2

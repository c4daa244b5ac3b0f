"""What the doctor's benchmark counts; its networks are trained by ``make doctor-bench`` alone."""

import json
from pathlib import Path

import torch

from benchmarks.doctor.architectures import ARCHITECTURES
from benchmarks.doctor.faults import FAULTS
from benchmarks.doctor.healthy import HEALTHY
from benchmarks.doctor.summary import failures, rates, table
from benchmarks.doctor.training import data_of
from steadynorm.doctor.checks import CHECKS

ROW = {
    "half": "held out",
    "architecture": "cnn",
    "seed": 0,
    "fault": "pruned",
    "variant": "",
    "found": ["train-eval-gap"],
    "caught": True,
    "false": [],
    "localisable": False,
    "placed": False,
    "healthy": 0.7,
    "faulty": 0.3,
    "attainable": 0.7,
    "treated": 0.69,
    "seconds": 1.0,
    "forwards": 40.0,
    "rivals": {"torch-audit": False, "Lightning": True},
}
MISSED = ROW | {"caught": False, "found": ["dead-channel"], "false": ["dead-channel"], "treated": 0.5}
ALARM = ROW | {"fault": "", "variant": "trained", "found": ["mixed-eps"], "false": ["mixed-eps"], "treated": None}
SILENT = ROW | {"fault": "", "variant": "trained", "found": [], "treated": None, "half": "tuning"}
PLACED = ROW | {"localisable": True, "placed": True, "treated": None}


def test_each_rate_counts_its_cases():
    assert rates([ROW, MISSED, ALARM, SILENT, PLACED]) == {
        "recall": (2, 3),
        "precision": (2, 4),
        "healthy and silent": (1, 2),
        "right layer": (1, 1),
        "repaired": (1, 2),
    }


def test_a_table_shows_each_half_and_what_was_not_measured():
    lines = table({"tuning": [SILENT], "held out": [ROW, MISSED, ALARM, PLACED]}).splitlines()
    assert lines[0] == "| | tuning | held out |"
    assert "| recall | not measured | 0.667 (2 of 3) |" in lines
    assert "| healthy and silent | 1.000 (1 of 1) | 0.000 (0 of 1) |" in lines
    assert "| recall of Lightning, generously counted | 1.000 (1 of 1) | 1.000 (4 of 4) |" in lines


def test_everything_that_went_wrong_is_listed():
    found = list(failures([ROW, MISSED, ALARM, SILENT, PLACED, PLACED | {"placed": False}]))
    assert [line.split(":")[0] for line in found] == [
        "missed",
        "false alarm",
        "not repaired",
        "false alarm",
        "wrong layer",
    ]


def test_there_are_two_halves_of_faults_and_architectures_and_every_cause_is_a_check():
    for half in ("tuning", "held out"):
        assert sum(fault.half == half for fault in FAULTS.values()) >= 20
        assert sum(each.half == half for each in ARCHITECTURES.values()) >= 4
    named = set().union(*(fault.causes | fault.consequences for fault in FAULTS.values()))
    assert named <= set(CHECKS), named - set(CHECKS)


COLUMNS = {
    "tuning half": "tuning_cpu_20261129",
    "first": "held_out_1_cpu_20261129",
    "second": "held_out_2_cpu_20261129",
    "third": "held_out_3_cpu_20261129",
    "fourth": "held_out_4_cpu_20261130",
    "fifth": "held_out_5_cpu_20261130",
}


DOCS = Path(__file__).parents[2] / "docs"


def recorded(name: str) -> list:
    return [json.loads(line) for line in (DOCS / "results" / f"doctor_{name}.jsonl").read_text().splitlines()[1:]]


def test_the_documented_table_is_that_of_the_records():
    rows = {name: recorded(record) for name, record in COLUMNS.items()}
    assert table(rows) in (DOCS / "doctor_benchmark.md").read_text()


def test_the_doctors_page_and_the_readme_sum_up_the_records():
    thought_up, reported = (
        [row for name in names for row in recorded(COLUMNS[name])]
        for names in (("first", "second", "third"), ("fourth", "fifth"))
    )
    page = (DOCS / "doctor.md").read_text()
    for what, rate in {
        "faults found": "recall",
        "warnings that were right": "precision",
        "healthy models left alone": "healthy and silent",
        "right layer named": "right layer",
        "repaired": "repaired",
    }.items():
        counts = [rates(rows)[rate] for rows in (thought_up, reported)]
        assert f"| {what} | " + " | ".join(f"{part:,} of {whole:,}" for part, whole in counts) + " |" in page
    assert f"{len(FAULTS)} kinds" in page
    together = rates(thought_up + reported)
    silent, healthy = together["healthy and silent"]
    networks, kinds = ({row[key] for row in thought_up + reported} for key in ("architecture", "fault"))
    readme = " ".join((DOCS.parent / "README.md").read_text().split())
    for said in (
        "Of {:,} faults that were put into".format(together["recall"][1]),
        f"into {len(networks)} trained networks, {len(kinds - {''})} kinds in all",
        f"the doctor found {together['recall'][0]:,}",
        "{:,} of {:,} warnings were right".format(*together["precision"]),
        f"it warned of {healthy - silent} of {healthy:,} healthy models",
    ):
        assert said in readme, said


def test_signals_can_be_told_apart_and_are_the_same_each_time():
    first, again = data_of("signals", None), data_of("signals", None)
    assert torch.equal(first.train[0], again.train[0]) and first.train[0].shape[1:] == (3, 64)
    assert set(first.test[1].tolist()) == set(range(10))


def test_healthy_variants_are_many_and_some_are_held_out():
    assert len(HEALTHY) >= 20
    assert sum(variant.halves == ("held out",) for variant in HEALTHY.values()) >= 6

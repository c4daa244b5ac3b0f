"""What the doctor's benchmark counts; its networks are trained by ``make doctor-bench`` alone."""

import copy
import json
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.doctor.architectures import ARCHITECTURES
from benchmarks.doctor.architectures.basic import Pyramid
from benchmarks.doctor.faults import FAULTS
from benchmarks.doctor.healthy import HEALTHY
from benchmarks.doctor.subject import Subject, norms_of
from benchmarks.doctor.summary import failures, rates, table
from benchmarks.doctor.training import Data, data_of
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
        assert sum(each.half == half for each in ARCHITECTURES.values()) >= 5
    named = set().union(*(fault.causes | fault.consequences for fault in FAULTS.values()))
    assert named <= set(CHECKS), named - set(CHECKS)


COLUMNS = {"tuning half": "tuning", "first": "held_out_1", "second": "held_out_2", "third": "held_out_3"}


def test_the_documented_table_is_that_of_the_records():
    docs = Path(__file__).parents[2] / "docs"
    records = {name: docs / "results" / f"doctor_{each}_cpu_20261129.jsonl" for name, each in COLUMNS.items()}
    rows = {
        name: [json.loads(line) for line in record.read_text().splitlines()[1:]] for name, record in records.items()
    }
    assert table(rows) in (docs / "doctor.md").read_text()


@pytest.fixture(scope="module")
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(1024, 3, 16, 16, generator=generator), torch.randint(0, 10, (1024,), generator=generator)
    return Data(train=(x, labels), validation=(x, labels), test=(x, labels))


QUICK = [
    name
    for name, fault in FAULTS.items()
    if fault.inject.__module__.endswith((".estimates", ".surroundings"))
    and "dropout" not in name
    and "teacher" not in name  # these train
]


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_changes_what_the_doctor_is_given(name, data):
    torch.manual_seed(0)
    model = Pyramid()
    model(data.train[0][:256])  # now its statistics are those of data
    model.eval()
    before = copy.deepcopy(model)
    case = FAULTS[name].inject(Subject(model=model, data=data, draw=random.Random(0), rate=0.1))
    if case is None:
        assert not any(isinstance(norm, nn.BatchNorm1d) for _, norm in norms_of(before))
        return
    assert case.model is model and set(case.layers or ()) <= {name for name, _ in model.named_modules()}
    described = [str(each) for each in (model, before)]
    flags = [
        [(each.training, vars(each).get("momentum"), vars(each).get("eps")) for each in one.modules()]
        for one in (model, before)
    ]
    states = [one.state_dict() for one in (model, before)]
    same = states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )
    assert not same or described[0] != described[1] or flags[0] != flags[1] or case.options


def test_signals_can_be_told_apart_and_are_the_same_each_time():
    first, again = data_of("signals", None), data_of("signals", None)
    assert torch.equal(first.train[0], again.train[0]) and first.train[0].shape[1:] == (3, 64)
    assert set(first.test[1].tolist()) == set(range(10))


def test_healthy_variants_are_many_and_some_are_held_out():
    assert len(HEALTHY) >= 20
    assert sum(variant.halves == ("held out",) for variant in HEALTHY.values()) >= 10

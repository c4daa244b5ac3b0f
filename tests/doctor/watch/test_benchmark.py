"""The faulty trainings of ``python -m benchmarks.watch``, and its tables."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from benchmarks.watch.faulty import FAULTY, changed, ordered, poisoned
from benchmarks.watch.summary import figures_of, table_of_faulty, table_of_healthy
from benchmarks.watch.trainings import HEALTHY
from steadynorm.reporting.figures import draw

DOCS = Path(__file__).parents[3] / "docs"


def batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    while True:
        labels = torch.randint(10, (16,), generator=generator)
        yield labels[:, None, None, None].float().expand(-1, 3, 4, 4), labels


def taken(disturbed, count):
    return list(itertools.islice(disturbed, count))


def test_one_value_of_one_batch_in_so_many_is_poisoned():
    found = taken(poisoned(batches(), every=5, first=2), 10)
    assert [int(x.isnan().sum()) for x, _ in found] == [0, 0, 1, 0, 0, 0, 0, 1, 0, 0]


def test_batches_of_one_class_come_in_their_turn_with_their_own_inputs():
    found = taken(ordered(batches(), begins=3, ends=11, steps=2), 14)
    classes = [labels.unique().tolist() for _, labels in found]
    assert classes[3:11] == [[1], [2], [2], [3], [3], [4], [4], [5]]
    assert all(len(each) > 3 for each in classes[:3] + classes[11:])
    assert all(torch.equal(x[:, 0, 0, 0], labels.float()) and len(x) == 16 for x, labels in found)


def test_inputs_change_up_to_a_step():
    found = taken(changed(batches(), lambda x: x + 100, until=2), 4)
    assert [float(x.max()) >= 100 for x, _ in found] == [True, True, False, False]


@pytest.mark.parametrize(
    "training", [*HEALTHY, *(each.training for each in FAULTY)], ids=lambda training: training.name
)
def test_every_training_can_be_built_and_has_norms(training):
    model, optimizer = training.make(0)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(module.momentum == (training.momentum or 0.1) for module in norms)
    assert optimizer.param_groups[0]["lr"] == training.rate
    assert 0 <= training.schedule(0.0) <= 1
    assert 0 <= training.schedule(1.0) <= 1


def row(**changed):
    event = {"check": "outlier-statistics", "over": False}
    made = {
        "name": "a",
        "well": False,
        "arm": "off",
        "seed": 0,
        "steps": 100,
        "layers": 2,
        "accuracies": {"50": 40.0, "100": 60.0},
    }
    made |= {"last": 60.0, "since": 50.0, "events": [event, event | {"over": True}], "begins": 50, "ends": 100}
    return made | {"noticed": None} | changed


def test_the_tables_sum_up_rows():
    rows = [row(), row(seed=1, last=70.0), row(arm="warn", noticed=4), row(arm="warn", seed=1)]
    lines = table_of_faulty(rows).splitlines()
    assert lines[2] == "| a | off | 65.0 (60.0 to 70.0) | 50.0 (50.0 to 50.0) | - | - |"
    assert lines[3] == "|  | warn | 60.0 (60.0 to 60.0) | 50.0 (50.0 to 50.0) | 4 steps, 1 of 2 | 2.0 |"
    well = table_of_healthy([row(well=True), row(well=True, name="b", steps=300, events=[])]).splitlines()
    assert well[2] == "| a | 100 | 2 | 60.0 % | `outlier-statistics` 1 |"
    assert well[4] == "| all | 400 | 4 | | 2: 500.0 in 100,000 steps |"
    (figure,) = figures_of(rows)
    assert figure.options["rules"] == [50]
    assert draw(figure).png.startswith(b"\x89PNG")


def test_the_documented_tables_are_those_of_the_record():
    page = (DOCS / "watch.md").read_text()
    rows = [json.loads(line) for line in (DOCS / "results" / "watch_cpu_20261130.jsonl").read_text().splitlines()[1:]]
    assert len({each["name"] for each in rows if each["well"]}) == 10
    assert {each["name"] for each in rows if not each["well"]} == {each.name for each in FAULTY}
    assert table_of_faulty(rows) in page
    assert table_of_healthy(rows) in page

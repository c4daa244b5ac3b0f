"""Killed by SIGKILL in the middle of a grid and resumed: what is finished stays, and the tables are the same."""

import importlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.reporting.records import Record, read_record
from tests.support.experiments import Recorder, kill, on_tiny_data, without_times
from tests.support.records import summary_json

# experiment -> (how many networks and cells a process begins before it waits to be killed, changes of its tiny config)
PLANS: dict[str, tuple[int, dict[str, Any]]] = {
    "sweep": (4, {"lr": (0.05,), "largest_rate": True}),
    "shift": (8, {"severities": (5,)}),
    "stream": (4, {}),
}


class Waiting(Recorder):
    """Says when the last network or cell of its share begins, and waits there for its end."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def begin(self, name: str, **named: Any) -> None:
        super().begin(name, **named)
        self._wait()

    def _wait(self) -> None:
        if len(self.begun) == self.last:
            print("begun", flush=True)
            time.sleep(600)


def run(name: str, display: Recorder, **changes: Any) -> Path:
    """Run or resume the tiny form of an experiment."""
    tiny = importlib.import_module(f"tests.lab.experiments.test_{name}").TINY
    config = type(tiny)(**changes) if "resume" in changes else replace(tiny, **PLANS[name][1], **changes)
    with on_tiny_data():
        return EXPERIMENTS[name].run(config, display)


def worker(name: str, how: str, place: str, threads: str) -> None:
    """Run it as a process that has to be killed."""
    torch.set_num_threads(int(threads))
    run(name, Waiting(PLANS[name][0]), **{how: Path(place)})


def ended(record: Record) -> int:
    return sum(cell.has_ended for cell in record.cells)


def tables(record: Record) -> dict[str, Any]:
    """Everything that the report says, apart from times."""
    untimed = replace(
        record, cells=tuple(map(without_times, record.cells)), created="", command="", versions={}, machine={}
    )
    return summary_json(untimed)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_a_killed_experiment_resumes_to_the_tables_of_an_undisturbed_one(name: str, tmp_path: Path) -> None:
    undisturbed = read_record(run(name, Recorder(), out=tmp_path / "undisturbed"))
    place, share = tmp_path / "a", PLANS[name][0]
    for kills, how in enumerate(("out", "resume"), start=1):
        kill(worker, name, how, place, undisturbed.resolved["threads"])
        assert ended(read_record(place)) == kills * (share - 1)
    again = Recorder()
    resumed = read_record(run(name, again, resume=place))
    assert len(again.begun) == ended(undisturbed) - 2 * (share - 1)
    assert tables(resumed) == tables(undisturbed)

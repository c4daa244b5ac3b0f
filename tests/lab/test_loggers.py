import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steadynorm.lab import loggers
from steadynorm.lab.loggers import Log, check_loggers, logged
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.place import check_inside
from steadynorm.reporting.records import Cell
from steadynorm.reporting.run_directory import RunDirectory
from tests.reporting.test_loggers import offline_history
from tests.support.records import RECORD, run

CELL = run("batch_norm", val_accuracy=[0.2, 0.4])
READINGS = {"norm1/gate": 0.5, "norm2/gate": 1.0, "norm3/gate": 0.0, "norm1/noise": 2.0}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "a")
    made.begin(RECORD)
    return made


def test_readings_are_logged_by_layer_and_over_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = logged(CELL, READINGS)
    assert found["val/accuracy"] == 0.4 and found["train/loss"] == CELL.last("train_loss")
    assert (found["norm/median/gate"], found["norm/max/gate"], found["norm/max/noise"]) == (0.5, 1.0, 2.0)
    assert found["norm/norm2/gate"] == 1.0
    monkeypatch.setattr(loggers, "FEW", 2)
    assert {name for name in logged(CELL, READINGS) if name.startswith("norm/")} == {
        f"norm/{over}/{what}" for over in ("median", "max") for what in ("gate", "noise")
    }


def test_tensorboard_gets_every_epoch_and_its_readings(directory: RunDirectory) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(("tensorboard",), directory, Cell(factors=CELL.factors))
    for accuracies in ([0.2], [0.2, 0.4]):
        log.write(run("batch_norm", val_accuracy=accuracies), READINGS)
    log.close()
    events = EventAccumulator(str(directory.tensorboard_path(CELL))).Reload()
    assert [(event.step, event.value) for event in events.Scalars("norm/norm1/gate")] == [(1, 0.5), (2, 0.5)]
    assert [event.value for event in events.Scalars("val/accuracy")] == pytest.approx([0.2, 0.4])


def test_nothing_is_logged_where_nothing_is_asked_for(directory: RunDirectory) -> None:
    log = Log((), directory, CELL)
    log.write(CELL, READINGS)
    log.close()
    assert not (directory.path / "tensorboard").exists()


class Run:
    def __init__(self, **given: Any) -> None:
        self.given, self.rows, self.ended = given, {}, 0

    def log(self, values: dict[str, float], *, step: int) -> None:
        self.rows[step] = values

    def finish(self) -> None:
        self.ended += 1


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Those of a package that stands for wandb."""
    made: list[Run] = []

    def init(**given: Any) -> Run:
        if given["name"].startswith("refused"):
            raise LookupError("no key\nat all")
        made.append(Run(**given))
        return made[-1]

    package = SimpleNamespace(init=init, Settings=dict, errors=SimpleNamespace(Error=LookupError))
    monkeypatch.setitem(sys.modules, "wandb", package)
    return made


def test_weights_and_biases_has_a_run_for_each_network_that_goes_on_under_its_id(
    directory: RunDirectory, runs: list[Run]
) -> None:
    for _ in range(2):
        log = Log(("wandb",), directory, CELL)
        log.write(CELL, READINGS)
        log.close()
        log.close()
    Log(("wandb",), directory, run("none"))
    first, again, other = runs
    assert first.rows == {2: logged(CELL, READINGS)} and first.ended == 1
    assert first.given["id"] == again.given["id"] != other.given["id"]
    assert (first.given["name"], first.given["resume"], first.given["reinit"]) == (CELL.name, "allow", "create_new")
    assert first.given["config"] == {**RECORD.config, **CELL.factors}
    assert first.given["dir"] == str(directory.path)


@pytest.mark.slow  # it starts a service
def test_weights_and_biases_offline_has_every_epoch(directory: RunDirectory) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    code = """
import sys
from pathlib import Path
from steadynorm.lab.loggers import Log
from steadynorm.reporting.run_directory import RunDirectory
from tests.lab.test_loggers import READINGS
from tests.support.records import run
two = [Log(("wandb",), RunDirectory(Path(sys.argv[1])), run(arm)) for arm in ("batch_norm", "none")]
for epochs in ([0.2], [0.2, 0.4]):
    for log, arm in zip(two, ("batch_norm", "none")):
        log.write(run(arm, val_accuracy=epochs), READINGS)
for log in two:
    log.close()
"""
    offline = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(directory.path)]
    done = subprocess.run(command, check=True, capture_output=True, env=offline, cwd=Path(__file__).parents[2])
    assert done.stdout == b""
    check_inside(directory.path)
    histories = [
        dict(offline_history(path.read_bytes())) for path in directory.path.glob("wandb/offline-*/run-*.wandb")
    ]
    assert [[row["val/accuracy"] for row in history.values()] for history in histories] == [[0.2, 0.4]] * 2
    assert all([*history] == [1, 2] and history[2]["norm/max/gate"] == 1.0 for history in histories)


def test_weights_and_biases_that_refuses_is_one_line(directory: RunDirectory, runs: list[Run]) -> None:
    with pytest.raises(UserError, match=r"^--log wandb: .* refuses \(LookupError: no key\)\. Run: wandb login; or set"):
        Log(("wandb",), directory, run("refused"))


def test_weights_and_biases_that_is_absent_is_refused_by_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    check_loggers(("tensorboard",))
    with pytest.raises(UserError, match=r"^--log wandb: .* is not installed\. Run: pip install wandb$"):
        check_loggers(("tensorboard", "wandb"))

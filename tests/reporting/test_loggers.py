"""Readings arrive where a training logs, read back from there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steadynorm.reporting.loggers import log

READINGS = [{"bn1/gate": 0.25, "bn1/noise": 0.5}, {"bn1/gate": 0.75, "bn1/noise": 0.125}]
ROOT = Path(__file__).parents[2]


def write(to):
    for step, readings in enumerate(READINGS):
        log(readings, 10 * step, to=to)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        write(writer)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["scalars"] == ["norm/bn1/gate", "norm/bn1/noise"]
    assert [(each.step, each.value) for each in events.Scalars("norm/bn1/gate")] == [(0, 0.25), (10, 0.75)]


@pytest.mark.slow  # it starts a service
def test_weights_and_biases_offline(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    code = """
import sys, wandb
from tests.reporting.test_loggers import write
run = wandb.init(project="norms", mode="offline", dir=sys.argv[1], settings=wandb.Settings(silent=True))
write(run)
run.finish()
"""
    offline = os.environ | {"WANDB_MODE": "offline", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, env=offline)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert dict(offline_history(path.read_bytes())) == {
        0: {"norm/bn1/gate": 0.25, "norm/bn1/noise": 0.5},
        10: {"norm/bn1/gate": 0.75, "norm/bn1/noise": 0.125},
    }


def offline_history(content):
    """Step and numbers of each row of an offline run: records behind headers of checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    at = 7  # behind the file's own header
    while at + 7 <= len(content):
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        assert kind == 1  # a whole record
        record = Record.FromString(content[at + 7 : at + 7 + length])
        at += 7 + length
        if record.WhichOneof("record_type") == "history":
            items = {each.key or each.nested_key[0]: json.loads(each.value_json) for each in record.history.item}
            yield record.history.step.num, {name: each for name, each in items.items() if name[0] != "_"}


def test_a_logger_of_lightnings(tmp_path):
    pytest.importorskip("lightning", reason="lightning is not installed")
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    write(logger)
    logger.save()
    lines = Path(logger.log_dir, "metrics.csv").read_text().splitlines()
    assert lines == ["norm/bn1/gate,norm/bn1/noise,step", "0.25,0.5,0", "0.75,0.125,10"]


def test_a_dictionary_and_a_function():
    history, calls = {}, []
    write(history)
    write(lambda readings, step: calls.append((step, readings)))
    assert (
        history
        == dict(calls)
        == {
            0: {"norm/bn1/gate": 0.25, "norm/bn1/noise": 0.5},
            10: {"norm/bn1/gate": 0.75, "norm/bn1/noise": 0.125},
        }
    )
    log({"loss": 1.0}, 10, to=history, prefix="")
    assert history[10] == {"norm/bn1/gate": 0.75, "norm/bn1/noise": 0.125, "loss": 1.0}


def test_no_readings_write_nothing():
    history = {}
    log({}, 3, to=history)
    assert history == {}


def test_anything_else_is_refused():
    with pytest.raises(TypeError, match=r"log: to must be a SummaryWriter, .* got int\."):
        log(READINGS[0], 0, to=3)

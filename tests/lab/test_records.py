import dataclasses
import math
from pathlib import Path

import pytest

from steadynorm.lab.failure import UserError
from steadynorm.lab.records import (
    Epoch,
    LayerGradient,
    Record,
    RunRecord,
    RunSpec,
    read_record,
    write_config,
    write_tables,
)

EPOCH = Epoch(
    epoch=1,
    learning_rate=0.1,
    train_loss=0.1 + 0.2,
    train_accuracy=1 / 3,
    val_loss=math.inf,
    val_accuracy=0.0,
    grad_norm_mean=1e-30,
    grad_norm_p5=1e-300,
    grad_norm_p95=2.5,
    images_per_second=1234.5,
    seconds=6.5,
)
LAYER = LayerGradient(epoch=1, layer="conv1, odd", mean=1.0, p5=0.5, p95=2.0)
RUNS = (
    RunRecord(spec=RunSpec(arm="none", seed=0, lr=0.1, epochs=2)),
    RunRecord(
        spec=RunSpec(arm="none", seed=1, lr=0.1, epochs=2),
        status="diverged",
        diverged_at_step=7,
        parameters=12,
        epochs=(EPOCH,),
        layers=(LAYER,),
    ),
)
RECORD = Record(
    experiment="compare",
    command="steadynorm compare",
    created="2026-01-01T00:00:00+00:00",
    config={"arms": ["none"]},
    resolved={"device": "cpu"},
    versions={"torch": "2"},
    machine={"cores": 2},
    runs=RUNS,
)


def write(directory: Path) -> None:
    write_config(directory, RECORD)
    write_tables(directory, RUNS)


def test_a_record_is_read_back_exactly(tmp_path: Path) -> None:
    write(tmp_path)
    assert read_record(tmp_path) == RECORD


def test_nan_is_read_back_as_nan(tmp_path: Path) -> None:
    write_config(tmp_path, RECORD)
    write_tables(tmp_path, (dataclasses.replace(RUNS[1], epochs=(dataclasses.replace(EPOCH, val_loss=math.nan),)),))
    assert math.isnan(read_record(tmp_path).runs[0].epochs[0].val_loss)


def test_names_of_runs_differ_in_arm_seed_rate_and_purpose() -> None:
    spec = RunSpec(arm="none", seed=0, lr=0.1, epochs=2)
    others = [
        dataclasses.replace(spec, **change) for change in ({"arm": "x"}, {"seed": 1}, {"lr": 0.01}, {"purpose": "tune"})
    ]
    assert len({run.name for run in (spec, *others)}) == 5


def test_two_rates_never_share_a_name() -> None:
    spec = RunSpec(arm="none", seed=0, lr=0.1, epochs=2)
    assert dataclasses.replace(spec, lr=0.1000001).name != spec.name


@pytest.mark.parametrize("missing", ["config.json", "runs.json", "metrics.csv", "gradient_norms.csv"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"not a run directory, {missing} is missing"):
        read_record(tmp_path)


@pytest.mark.parametrize("damaged", ["config.json", "runs.json", "metrics.csv", "gradient_norms.csv"])
def test_a_damaged_file_is_refused(tmp_path: Path, damaged: str) -> None:
    write(tmp_path)
    path = tmp_path / damaged
    path.write_text(path.read_text()[:-12])
    with pytest.raises(UserError, match="a record is damaged"):
        read_record(tmp_path)

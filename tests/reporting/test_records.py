import dataclasses
import json
import math
from pathlib import Path

import pytest

from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import RunSpec, read_record, write_config, write_tables
from tests.support.records import EPOCH, RECORD, RUNS


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


def test_runs_of_before_a_spec_had_a_batch_size_and_a_depth_are_read(tmp_path: Path) -> None:
    write_config(tmp_path, RECORD)
    write_tables(tmp_path, RUNS)
    heads = json.loads((tmp_path / "runs.json").read_text())
    for head in heads:
        del head["batch_size"], head["depth"]
    (tmp_path / "runs.json").write_text(json.dumps(heads))
    assert read_record(tmp_path).runs == RUNS

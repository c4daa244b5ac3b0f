from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steadynorm.lab.failure import UserError
from steadynorm.lab.records import RunRecord, RunSpec
from steadynorm.lab.run_directory import RunDirectory
from tests.support.records import RECORD, RUNS

SPEC = RunSpec(arm="none", seed=0, lr=0.1, epochs=2)


def state_of(path: Path) -> Path:
    return path / "state" / f"{SPEC.name}.safetensors"


def test_a_run_without_a_state_is_waiting(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).load_record(SPEC) == RunRecord(spec=SPEC)


def test_a_state_is_read_back_exactly(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    record = replace(RUNS[1], spec=SPEC)
    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "n": torch.tensor(3)}
    directory.save_state(record, tensors)
    assert directory.load_record(SPEC) == record
    loaded = directory.load_tensors(SPEC)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_state_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    state_of(tmp_path).parent.mkdir()
    state_of(tmp_path).write_bytes(content)
    with pytest.raises(UserError, match=r"the state is damaged .* Remove it"):
        RunDirectory(tmp_path).load_record(SPEC)


def test_a_truncated_state_says_what_to_do(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.save_state(RunRecord(spec=SPEC), {"a": torch.zeros(100)})
    state_of(tmp_path).write_bytes(state_of(tmp_path).read_bytes()[:-8])
    with pytest.raises(UserError, match="the state is damaged"):
        directory.load_tensors(SPEC)


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.save_state(RunRecord(spec=SPEC), {})
    with pytest.raises(UserError, match="holds RunSpec"):
        directory.load_record(replace(SPEC, epochs=3))


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path).lock(),
        pytest.raises(UserError, match=r"another process is writing.*another --out"),
        RunDirectory(tmp_path).lock(),
    ):
        pass


def test_the_lock_ends_with_its_block(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).lock():
        pass
    with RunDirectory(tmp_path).lock():
        pass


def test_a_directory_begins_one_experiment_only(tmp_path: Path) -> None:
    RunDirectory(tmp_path).begin(RECORD)
    with pytest.raises(UserError, match=r"holds an experiment already\. Continue it with --resume"):
        RunDirectory(tmp_path).begin(RECORD)

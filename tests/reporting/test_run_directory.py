import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import filelock
import pytest
import torch
from safetensors import safe_open

from steadynorm.lab.training import network
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell, Measurement
from steadynorm.reporting.run_directory import RunDirectory, save_tensors
from tests.support.records import CELLS, RECORD, with_factors

CELL = Cell(factors=network(arm="none", seed=0, lr=0.1, epochs=2))

NAN = Measurement(quantity="nan", value=math.nan)


def state_of(path: Path) -> Path:
    return path / "state" / f"{CELL.name}.safetensors"


def test_a_cell_without_a_state_is_waiting(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).load_state(replace(CELL, status="running", seconds=1.0)) == CELL


def test_a_state_is_read_back_exactly(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    cell = replace(CELLS[1], factors=CELL.factors, measurements=(*CELLS[1].measurements, NAN))
    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "n": torch.tensor(3)}
    directory.save_state(cell, tensors)
    assert repr(directory.load_state(CELL)) == repr(cell)
    loaded = directory.load_tensors(CELL)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_state_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    state_of(tmp_path).parent.mkdir()
    state_of(tmp_path).write_bytes(content)
    with pytest.raises(UserError, match=r"the state is damaged .* Remove it"):
        RunDirectory(tmp_path).load_state(CELL)


def test_a_truncated_state_says_what_to_do(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.save_state(CELL, {"a": torch.zeros(100)})
    state_of(tmp_path).write_bytes(state_of(tmp_path).read_bytes()[:-8])
    with pytest.raises(UserError, match="the state is damaged"):
        directory.load_tensors(CELL)


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.save_state(CELL, {})
    with pytest.raises(UserError, match=r"holds \{.*'epochs': 2\}, not \{.*'epochs': 3\}\. Remove it"):
        directory.load_state(with_factors(CELL, epochs=3))


@pytest.mark.parametrize(
    "edit",
    [
        ('"waiting"', '"done"'),
        ('"measurements": []', '"measurements": [{"quantity": "a"}]'),
        ('"measurements": []', '"measurements": [{"quantity": "a", "value": "b"}]'),
        ('"measurements": []', '"measurements": ' + "[" * 100_000),
        ('"factors": {', '"factor": {'),
    ],
)
def test_a_state_that_is_no_cell_says_what_to_do(tmp_path: Path, edit: tuple[str, str]) -> None:
    text = json.dumps(asdict(CELL)).replace(*edit)
    assert text != json.dumps(asdict(CELL))
    save_tensors(state_of(tmp_path), {}, {"cell": text})
    with pytest.raises(UserError, match=r"the state is damaged .* Remove it") as refused:
        RunDirectory(tmp_path).load_state(CELL)
    assert "\n" not in str(refused.value)


def test_equal_tensors_and_metadata_give_equal_bytes(tmp_path: Path) -> None:
    metadata = {name: name * 3 for name in "abcdefgh"}
    tensors = {"w": torch.randn(3, 5), "n": torch.tensor(2)}
    for place in range(4):
        save_tensors(tmp_path / str(place), tensors, dict(sorted(metadata.items(), reverse=place % 2 == 0)))
    assert len({(tmp_path / str(place)).read_bytes() for place in range(4)}) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path).lock(),
        pytest.raises(UserError, match=r"another process is writing.*another --out"),
        RunDirectory(tmp_path).lock(),
    ):
        pass


@pytest.mark.parametrize("without", ["nothing", "fcntl"])
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if without == "fcntl":
        monkeypatch.setattr(filelock, "FileLock", filelock.SoftFileLock)
    code = f"""
import sys, time
sys.modules[{without!r}] = None
from pathlib import Path
from steadynorm.reporting.run_directory import RunDirectory
with RunDirectory(Path({str(tmp_path)!r})).lock():
    print("held", flush=True)
    time.sleep(60)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"^{tmp_path}: another process is writing"), RunDirectory(tmp_path).lock():
            pass
        holder.kill()
    with RunDirectory(tmp_path).lock():
        pass


def test_what_a_killed_process_left_unfinished_is_removed_by_the_next_one(tmp_path: Path) -> None:
    left = [
        ".cells.json.k3_x9abc.part",
        "state/.a.safetensors.k3_x9abc.part",
        "checkpoints/.b.safetensors.0aaaaaa_.part",
    ]
    kept = [".report.html.k3_x9abc.part", "figures/.a.png.k3_x9abc.part", "state/a.safetensors", ".part", "state/.part"]
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with RunDirectory(tmp_path).lock():  # a report, which may be on its way, does not hold it
        assert not any((tmp_path / name).exists() for name in left)
    assert all((tmp_path / name).exists() for name in kept)


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_lock_that_is_a_link_is_refused_and_its_target_kept(tmp_path: Path, kind: str) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    link = tmp_path / "run" / ".lock"
    (link.symlink_to if kind == "symbolic" else link.hardlink_to)(tmp_path / "precious")
    with pytest.raises(UserError, match=rf"^{link}: must be an ordinary file"), RunDirectory(tmp_path / "run").lock():
        pass
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", ["state", "checkpoints", "tensorboard", "figures"])
def test_a_folder_that_is_a_link_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    match = rf"{name}: is a symbolic link, so files would be written outside"
    with pytest.raises(UserError, match=match), RunDirectory(tmp_path / "run").lock():
        pass
    with RunDirectory(tmp_path / "other").lock():  # the failed attempt holds nothing
        pass


def test_a_run_whose_name_leads_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    bad = with_factors(CELL, arm="../../precious")
    for path in (directory.checkpoint_path, directory.tensorboard_path, directory.load_state):
        with pytest.raises(UserError, match="is no name of a file"):
            path(bad)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_ends_with_its_block(tmp_path: Path) -> None:
    with RunDirectory(tmp_path).lock(), pytest.raises(filelock.Timeout):
        filelock.FileLock(tmp_path / ".lock", timeout=0).acquire()
    with filelock.FileLock(tmp_path / ".lock", timeout=0) as free:
        assert free.is_locked


def test_a_directory_begins_one_experiment_only(tmp_path: Path) -> None:
    RunDirectory(tmp_path).begin(RECORD)
    with pytest.raises(UserError, match=r"holds an experiment already\. Continue it with --resume"):
        RunDirectory(tmp_path).begin(RECORD)


def test_the_tensors_of_a_file_begin_at_a_multiple_of_8_bytes_whatever_its_metadata(tmp_path: Path) -> None:
    for length in range(8):
        save_tensors(tmp_path / "a", {"x": torch.ones(3)}, {"name": "é" + "a" * length})
        content = (tmp_path / "a").read_bytes()
        assert int.from_bytes(content[:8], "little") % 8 == 0
        with safe_open(tmp_path / "a", framework="pt") as found:
            assert found.metadata() == {"name": "é" + "a" * length}
            assert torch.equal(found.get_tensor("x"), torch.ones(3))


def test_a_folder_named_like_an_unfinished_file_stays(tmp_path: Path) -> None:
    (tmp_path / ".cells.json.k3_x9abc.part").mkdir()
    with RunDirectory(tmp_path).lock():
        pass
    assert (tmp_path / ".cells.json.k3_x9abc.part").is_dir()

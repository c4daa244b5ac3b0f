import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import steadynorm
from steadynorm.bench import record as record_module
from steadynorm.bench.kernels import KernelsFlags
from steadynorm.bench.record import begin_record, read_record, write_record
from steadynorm.bench.step import StepFlags
from steadynorm.reporting.failure import UserError

CPU = torch.device("cpu")
MADE = {"bench": "kernels", "device": "cpu", "created": "2026-03-01T23:59:59+00:00"}


def test_a_record_says_where_with_what_and_when_it_was_measured() -> None:
    head = begin_record("kernels", "kernels", KernelsFlags(), CPU)
    assert (head["bench"], head["device"], head["threads"]) == ("kernels", "cpu", torch.get_num_threads())
    assert set(head["versions"]) == {"python", "steadynorm", "torch", "numpy", "numba", "triton"}
    assert head["versions"]["torch"] == torch.__version__
    assert {"processor", "cores", "accelerator"} <= set(head["machine"])
    assert head["created"].startswith("20")
    assert head["created"].endswith("+00:00")
    assert set(head) >= {"commit", "command", "config", "allocator_reuses_memory"}


def test_the_process_that_measures_reuses_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "reuse_memory", lambda: "asked")
    assert begin_record("step", "step", StepFlags(), CPU)["allocator_reuses_memory"] == "asked"


def test_the_command_has_every_flag_that_decides_what_is_measured() -> None:
    config = KernelsFlags(op=("norm", "norm_relu"), max_mb=2.5, compile=True, out=Path("x"), json=True)
    assert begin_record("kernels", "kernels", config, CPU)["command"] == (
        "steadynorm bench kernels --op norm norm_relu --max-mb 2.5 --compile"
    )
    assert begin_record("step", "step", StepFlags(), CPU)["command"] == "steadynorm bench step"


def test_the_configuration_is_recorded_as_json_has_it() -> None:
    stored = json.loads(json.dumps(begin_record("kernels", "kernels", KernelsFlags(out=Path("a/b")), CPU)["config"]))
    assert (stored["out"], stored["seconds"], stored["dtypes"]) == ("a/b", 0.5, ["float32", "bfloat16"])


def test_a_package_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "PACKAGES", ("no-such-package", "torch"))
    versions = begin_record("kernels", "kernels", KernelsFlags(), CPU)["versions"]
    assert versions["no-such-package"] is None
    assert versions["torch"] is not None


def fake_code(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the running code seem to lie in ``directory``."""
    (directory / "bench").mkdir(parents=True)
    (directory / "__init__.py").touch()
    monkeypatch.setattr(record_module, "__file__", str(directory / "bench" / "record.py"))
    return directory


def git(place: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", "-C", str(place), *who, *words], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_the_running_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = fake_code(tmp_path / "steadynorm", monkeypatch)
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "x")
    commit = git(tmp_path, "rev-parse", "--short=12", "HEAD").strip()
    assert begin_record("kernels", "kernels", KernelsFlags(), CPU)["commit"] == commit
    (code / "__init__.py").write_text("changed")
    assert begin_record("kernels", "kernels", KernelsFlags(), CPU)["commit"] == f"{commit}-dirty"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_code_that_merely_lies_in_somebody_elses_repository_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "x")
    fake_code(tmp_path / "site-packages" / "steadynorm", monkeypatch)
    assert begin_record("kernels", "kernels", KernelsFlags(), CPU)["commit"] is None


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert begin_record("kernels", "kernels", KernelsFlags(), CPU)["commit"] is None


def test_the_code_that_is_asked_about_is_the_package() -> None:
    assert Path(record_module.__file__).parents[1] == Path(steadynorm.__file__).parent


def test_records_are_named_by_bench_device_and_day_and_never_overwritten(tmp_path: Path) -> None:
    place = tmp_path / "new"
    paths = [write_record(place, MADE | {"number": number}) for number in range(3)]
    names = (
        "bench_kernels_cpu_20260301.json",
        "bench_kernels_cpu_20260301_2.json",
        "bench_kernels_cpu_20260301_3.json",
    )
    assert [path.name for path in paths] == list(names)
    assert [read_record(path)["number"] for path in paths] == [0, 1, 2]


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"[]", b'{"experiment": "compare"}', b"\xff\xfe"])
def test_what_is_no_record_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json: is not a bench record"):
        read_record(tmp_path / "x.json")


def test_a_record_holds_five_digits_of_a_number_and_a_case_per_line(tmp_path: Path) -> None:
    record = MADE | {"share": 1 / 3, "cases": [{"ms": 2e-7 / 3}, {"ms": 12345678}]}
    path = write_record(tmp_path, record)
    lines = path.read_text().splitlines()
    assert ' "share": 0.33333,' in lines
    assert lines[-4:] == ['  {"ms": 6.6667e-08},', '  {"ms": 12345678}', " ]", "}"]
    assert json.loads(path.read_text())["cases"][0]["ms"] == 6.6667e-08


@pytest.mark.parametrize("target", ["precious", "nothing"])
def test_a_link_where_the_record_would_lie_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out").mkdir()
    link = tmp_path / "out" / "bench_kernels_cpu_20260301.json"
    link.symlink_to(tmp_path / target)
    assert write_record(tmp_path / "out", MADE) == link.with_stem(f"{link.stem}_2")
    assert link.is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


def test_a_record_that_does_not_fit_on_the_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*bench_kernels_cpu_20260301\.json'$"):
            write_record(tmp_path, MADE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []

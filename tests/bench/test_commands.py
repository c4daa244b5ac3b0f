import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadynorm import cli
from steadynorm.bench import commands, kernels, step
from steadynorm.bench.commands import BENCHMARKS, COMMANDS
from steadynorm.bench.record import Json
from tests.support.bench import disagreeing, result

EXTRAS = ("rich", "pyarrow", "PIL", "altair", "tensorboard", "jinja2", "nbformat", "huggingface_hub", "IPython")
EXTRAS += ("safetensors", "filelock")
TINY = ("bench", "kernels", "--shapes", "cnn", "--batches", "1")


def exit_status(*arguments: str) -> int:
    try:
        cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def measure_as(monkeypatch: pytest.MonkeyPatch, row: Json) -> None:
    made_up = replace(kernels.BENCHMARK, measure=lambda *_: row)
    monkeypatch.setattr(commands, "BENCHMARKS", [made_up])


def steps_as(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    row = {"network": "cnn", "difference": 0.5, "agrees": True, "norms": {}, "ours_over_torch": None} | changes
    monkeypatch.setattr(commands, "BENCHMARKS", [replace(step.BENCHMARK, measure=lambda *_: row)])


def test_kernels_prints_a_row_for_each_case_and_a_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_as(monkeypatch, result())
    assert exit_status(*TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("norm_relu ") and "numba" in line]) == 12
    assert lines[13].startswith("norm_relu: 12 cases, geometric mean 2.00x torch")
    assert lines[-1].startswith("target")


def test_kernels_with_json_prints_the_record_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_as(monkeypatch, result())
    assert exit_status(*TINY, "--json") == 0
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["cases"]) == 12
    assert "norm_relu" in printed.err


def test_kernels_that_disagree_are_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure_as(monkeypatch, disagreeing())
    assert exit_status(*TINY) == 1
    assert "disagrees: dx is off by 0.25, allowed 2e-06" in capsys.readouterr().out


def test_steps_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    steps_as(monkeypatch, ours_over_torch={"time": 0.75, "peak_bytes": 0.5})
    assert exit_status("bench", "step", "--networks", "cnn") == 0
    assert capsys.readouterr().out == "cnn       ours over torch's: time 0.750, peak memory 0.500\n"


def test_steps_with_json_print_the_record_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps_as(monkeypatch)
    assert exit_status("bench", "step", "--json") == 0
    assert json.loads(capsys.readouterr().out)["bench"] == "step"


def test_steps_that_disagree_are_exit_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    steps_as(monkeypatch, agrees=False)
    assert exit_status("bench", "step") == 1


def test_the_table_of_a_record_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    measure_as(monkeypatch, result())
    exit_status(*TINY, "--out", str(tmp_path))
    (path,) = tmp_path.iterdir()
    capsys.readouterr()
    assert exit_status("bench", "table", str(path)) == 0
    assert "| norm, ReLU | all | 12 | 2.00 |" in capsys.readouterr().out


def test_a_file_that_is_no_record_is_one_line_and_exit_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "x").write_text("{}")
    assert exit_status("bench", "table", str(tmp_path / "x")) == 2
    assert capsys.readouterr().err.startswith(f"steadynorm: {tmp_path / 'x'}: is not a bench record")
    assert exit_status("bench", "table", str(tmp_path / "y")) == 2
    assert capsys.readouterr().err == f"steadynorm: {tmp_path / 'y'}: No such file or directory.\n"


def test_ctrl_c_is_exit_status_130_and_leaves_the_record(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    outcomes = iter([result(), KeyboardInterrupt()])

    def measure(*_: object) -> Json:
        outcome = next(outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(commands, "BENCHMARKS", [replace(kernels.BENCHMARK, measure=measure)])
    assert exit_status(*TINY, "--out", str(tmp_path)) == 130
    (path,) = tmp_path.iterdir()
    assert capsys.readouterr().out.splitlines()[-1] == f"record: {path}"


def test_the_bench_runs_without_any_package_of_the_lab_but_tyro(tmp_path: Path) -> None:
    code = f"""
import runpy, sys
for name in {EXTRAS}: sys.modules[name] = None
sys.argv = ["bench", "kernels", "--shapes", "cnn", "--batches", "1", "--max-mb", "0.04", "--dtypes", "float32"]
sys.argv += ["--layouts", "contiguous", "--seconds", "1e-6"]
from steadynorm.bench import kernels
kernels.cache_bytes = lambda device: 1
runpy.run_module("steadynorm.bench", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "norm_relu: 1 cases" in done.stdout


def test_every_command_says_what_it_does_and_has_the_flags_of_its_benchmark() -> None:
    assert list(COMMANDS) == [*dict.fromkeys(one.command or one.name for one in BENCHMARKS), "table"]
    assert len({one.name for one in BENCHMARKS}) == len(BENCHMARKS)
    for benchmark in BENCHMARKS:
        assert COMMANDS[benchmark.command or benchmark.name][0] is benchmark.flags
        assert benchmark.flags.__doc__


def test_python_m_has_the_same_commands() -> None:
    command = [sys.executable, "-m", "steadynorm.bench", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert "usage: python -m steadynorm.bench" in done.stdout


def test_without_tyro_python_m_says_what_to_install() -> None:
    code = "import runpy, sys; sys.modules['tyro'] = None; runpy.run_module('steadynorm.bench', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "steadynorm: not installed: tyro. Run: pip install tyro\n")


def test_the_benchmarks_import_neither_tyro_nor_rich() -> None:
    modules = ["inference", "kernels", "layers", "step", "table", "workers"]
    code = f"""
import importlib, sys
for name in {modules}: importlib.import_module(f"steadynorm.bench.{{name}}")
print([name for name in ("tyro", "rich", "pandas") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""Ctrl-C at moments chosen exactly: a package that the program imports sends the signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steadynorm import cli, commands
from steadynorm._start import program_of

ROOT = Path(__file__).parents[1]
SIGNAL = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"


def started(tmp_path: Path, package: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with a package in place of the real one that sends Ctrl-C as it is imported."""
    (tmp_path / f"{package}.py").write_text(SIGNAL)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
    )


@pytest.mark.parametrize(
    ("package", "command", "asked"),  # the first import, and one of the command line's
    [
        ("torch", ("-m", "steadynorm"), ("compare", "--help")),
        ("torch", ("-W", "ignore", "-m", "steadynorm.bench"), ("--help",)),
        ("tyro", ("-m", "steadynorm"), ("compare", "--help")),
    ],
)
def test_ctrl_c_during_the_imports_is_one_line(
    tmp_path: Path, package: str, command: tuple[str, ...], asked: tuple[str, ...]
) -> None:
    ended = started(tmp_path, package, *command, *asked)
    assert (ended.returncode, ended.stderr, ended.stdout) == (130, "steadynorm: interrupted\n", "")


def test_a_program_that_imports_the_library_keeps_its_own_ctrl_c(tmp_path: Path) -> None:
    ended = started(tmp_path, "torch", "-c", "import steadynorm")
    assert "KeyboardInterrupt" in ended.stderr
    assert "steadynorm: interrupted" not in ended.stderr


def test_ctrl_c_while_flags_are_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "_named", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as stop:
        cli.main(("compare",))
    assert (stop.value.code, capsys.readouterr().err) == (130, "steadynorm: interrupted\n")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -m steadynorm compare", "steadynorm"),
        ("python -X utf8 -W error -m steadynorm.bench kernels", "steadynorm.bench"),
        ("python -I /usr/bin/steadynorm --help", "steadynorm"),
        ("python /usr/bin/pytest -m steadynorm", ""),
        ("python -m pytest steadynorm", ""),
        ("python -c import-steadynorm steadynorm", ""),
        ("python train.py steadynorm", ""),
        ("python", ""),
        ("python -m", ""),
    ],
)
def test_the_program_is_known_by_its_command_line(command: str, expected: str) -> None:
    assert program_of(command.split()) == expected

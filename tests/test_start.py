"""Ctrl-C at moments chosen exactly: a package that the program imports sends the signal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steadynorm import cli, commands
from steadynorm._start import is_program

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
    ("package", "command"),  # the first import, and one of the command line's
    [
        ("torch", ("-m", "steadynorm")),
        ("torch", ("-W", "ignore", "-m", "steadynorm.bench")),
        ("tyro", ("-m", "steadynorm")),
    ],
)
def test_ctrl_c_during_the_imports_is_one_line(tmp_path: Path, package: str, command: tuple[str, ...]) -> None:
    ended = started(tmp_path, package, *command, "--help")
    assert (ended.returncode, ended.stderr, ended.stdout) == (130, "steadynorm: interrupted\n", "")


def test_a_program_that_imports_the_library_keeps_its_own_ctrl_c(tmp_path: Path) -> None:
    ended = started(tmp_path, "torch", "-c", "import steadynorm")
    assert "KeyboardInterrupt" in ended.stderr
    assert "steadynorm: interrupted" not in ended.stderr


def test_ctrl_c_while_flags_are_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "_choice", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as stop:
        cli.main(("compare",))
    assert (stop.value.code, capsys.readouterr().err) == (130, "steadynorm: interrupted\n")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -m steadynorm compare", True),
        ("python -X utf8 -W error -m steadynorm.bench kernels", True),
        ("python -I /usr/bin/steadynorm --help", True),
        ("python /usr/bin/pytest -m steadynorm", False),
        ("python -m pytest steadynorm", False),
        ("python -c import-steadynorm steadynorm", False),
        ("python train.py steadynorm", False),
        ("python", False),
        ("python -m", False),
    ],
)
def test_the_program_is_known_by_its_command_line(command: str, expected: bool) -> None:
    assert is_program(command.split()) is expected

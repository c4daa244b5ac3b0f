"""The runner of other versions: what it skips, and what makes it fail."""

import os
import sys
from pathlib import Path

import pytest

from tests import versions
from tests.versions import Version


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run some versions in a repository that has one test, which fails."""

    def main(*names):
        (tmp_path / "test_one.py").write_text("def test_one():\n    assert False\n")
        monkeypatch.setattr(sys, "argv", ["versions.py", *names, "--tests", "test_one.py"])
        monkeypatch.setattr(versions, "ROOT", tmp_path)
        return versions.main()

    return main


def here(version, minutes):
    return Path(sys.executable)


def test_a_version_names_torch_and_perhaps_python():
    assert Version.parse("2.6") == Version(torch="2.6", python=None)
    assert Version.parse("2.9@3.13") == Version(torch="2.9", python="3.13")


def test_an_environment_is_rebuilt_where_what_it_needs_has_changed(monkeypatch, tmp_path):
    steps = []
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "attempt", lambda command, minutes: steps.append(command))
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("numpy==2.4.6\ntorch==2.13.0\n")
        os.utime(tmp_path / name, (0, 0))
    version = Version(torch="2.6", python=None)
    version.folder.mkdir()
    versions.build(version, minutes=1)
    assert ["torch==2.6.*" in step for step in steps] == [False, True]
    assert (version.folder / "constraints.txt").read_text() == "numpy==2.4.6\n"
    versions.build(version, minutes=1)
    assert len(steps) == 2
    os.utime(tmp_path / "pyproject.toml", (2**31, 2**31))
    versions.build(version, minutes=1)
    assert len(steps) == 4


def test_a_failing_test_fails_the_run(run, monkeypatch):
    monkeypatch.setattr(versions, "build", here)
    assert run("2.6") == 1


@pytest.mark.parametrize(("statuses", "expected"), [((0, 0), 0), ((1, 0), 1), ((0, 5), 1)], ids=str)
def test_no_version_that_passes_hides_one_that_fails(run, monkeypatch, statuses, expected):
    left = iter(statuses)
    monkeypatch.setattr(versions, "build", here)
    monkeypatch.setattr(versions, "run_tests", lambda python, arguments: next(left))
    assert run("2.6", "2.14") == expected


def test_a_python_that_is_not_there_is_skipped_in_one_line(run, capsys):
    assert run("2.6@3.99") == 0
    assert capsys.readouterr().out == "torch 2.6, Python 3.99: skipped, no environment: python3.99 is not installed\n"


def test_a_step_that_fails_is_told_by_its_last_line():
    with pytest.raises(versions.NoEnvironment, match=r"^no such wheel$"):
        versions.attempt([sys.executable, "-c", "import sys; sys.exit('some words\\nno such wheel')"], minutes=1)


def test_a_step_that_takes_too_long_is_told():
    with pytest.raises(versions.NoEnvironment, match=r"not installed within 0\.001 minutes"):
        versions.attempt(["sleep", "5"], minutes=0.001)

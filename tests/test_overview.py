"""``steadynorm --help``: every command in a line, at once."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from steadynorm import __version__, cli
from steadynorm._overview import END, FORMER, GROUPS, answer
from steadynorm.bench import commands as bench

ROOT = Path(__file__).parents[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def overview(*arguments: str, output: io.StringIO | None = None) -> str:
    output = output or io.StringIO()
    assert answer(arguments, version="1", output=output) == 0
    return output.getvalue()


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command where torch cannot be imported."""
    place = {"PYTHONPATH": f"{environment.pop('first', '')}{os.pathsep}{ROOT / 'src'}"}
    command = [sys.executable, "-m", "steadynorm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | place | environment, check=False)


def test_every_command_has_a_line_and_there_are_no_others() -> None:
    told = [name for group in GROUPS.values() for name in group]
    assert sorted([*told, *FORMER]) == sorted(cli.COMMANDS)
    assert sorted(FORMER) == sorted(f"bench {name}" for name in bench.MOVED)


def test_a_command_is_one_line_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = overview("--help").splitlines()
    assert max(map(len, lines)) <= 80
    for name, text in [each for group in GROUPS.values() for each in group.items()]:
        assert f"  {name:<15}{text}" in lines


@pytest.mark.parametrize("columns", [40, 50, 60, 200])
def test_at_any_width_every_word_is_there(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = overview("--help")
    assert max(map(len, shown.splitlines())) <= min(columns, 100)
    words = " ".join(shown.split())
    assert all(text in words for group in GROUPS.values() for text in [*group, *group.values()])
    assert all(line in words for line in END)


def test_neither_torch_nor_the_lab_is_imported_for_it(tmp_path: Path) -> None:
    for package in ("torch", "tyro", "numpy"):
        (tmp_path / f"{package}.py").write_text("raise SystemExit('imported')\n")
    shown = program("--help", first=str(tmp_path))
    assert (shown.returncode, shown.stderr) == (0, "") and "recalibrate" in shown.stdout
    assert program("compare", "--version", first=str(tmp_path)).stdout == f"steadynorm {__version__}\n"
    assert program("compare", "--help", first=str(tmp_path)).stderr == "imported\n"  # whose flags need it


def test_a_group_shows_its_own_commands() -> None:
    shown = overview("bench", "--help")
    assert "bench kernels" in shown and "compare" not in shown
    assert "steadynorm bench COMMAND --help" in shown


@pytest.mark.parametrize(("arguments", "part"), [((), "compare"), (("bench",), "bench kernels")])
def test_without_a_command_all_are_shown_as_an_error(
    arguments: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(arguments, version="1") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and part in printed.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("compair",), "no command is called 'compair'. Did you mean compare? steadynorm --help lists all."),
        (("recalib", "x"), "no command is called 'recalib'. Did you mean recalibrate or recalibration? "),
        (
            ("bench", "kernel"),
            "no command is called 'kernel'. Did you mean kernels? steadynorm bench --help lists all.",
        ),
        (("bench kernels",), "no command is called 'bench kernels'. Give its words apart, without quotes. "),
        (("qqq",), "no command is called 'qqq'. steadynorm --help lists all."),
        (("a\nb",), r"no command is called 'a\nb'. steadynorm --help"),
    ],
)
def test_an_unknown_command_is_one_line_with_the_nearest(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(arguments, version="1") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"steadynorm: {told}") and printed.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [("compare",), ("compare", "--help"), ("bench", "kernels"), ("bench", "statistics"), ("--tyro-print-completion",)],
)
def test_what_a_command_answers_is_left_to_it(arguments: tuple[str, ...]) -> None:
    assert answer(arguments, version="1") is None


@pytest.mark.parametrize(
    ("environment", "styled"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_headings_are_bold_where_the_terminal_may_show_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], styled: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ("\033[" in overview("--help", output=Terminal())) is styled
    assert "\033[" not in overview("--help")


def test_a_pipe_that_is_closed_leaves_no_traceback() -> None:
    command = f"{sys.executable} -m steadynorm --help"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -c 0; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        check=False,
    )
    assert done.returncode in (0, 141) and done.stderr == ""

"""The help of a command: its flags as tyro parses them, in groups, with defaults and examples."""

import io
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from steadynorm import cli
from steadynorm.command_help import GROUPS, Flag, command_help, flags_of
from steadynorm.commands import run_command
from steadynorm.examples import EXAMPLES
from tests.test_overview import Terminal


@dataclass(frozen=True, kw_only=True)
class Base:
    """What is shared."""

    data: str = "shapes"
    """What to look at."""
    epochs: int = 3
    """Passes over
    all of it."""


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    """Do something.

    And say that it was done.
    """

    place: Annotated[Path, tyro.conf.Positional]
    """Where."""
    kind: Literal["one", "two"] = "two"
    """Which."""
    sizes: tuple[int, ...] = (1, 2)
    """How large."""
    pair: tuple[int, int] | None = None
    """Both; default: none."""
    rate: Annotated[float, tyro.conf.arg(aliases=("--lr",))] = 0.5
    """How fast."""
    quick: bool = False
    """Soon."""
    given: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """No flag."""
    epochs: int = 5


def shown(config: type = Config, *, output: io.StringIO | None = None) -> str:
    return command_help("prog do", config, ("prog do --data x",), output or io.StringIO())


def test_flags_are_read_with_values_texts_and_defaults() -> None:
    assert flags_of(Config) == [
        Flag(name="--data", field="data", value="TEXT", text="What to look at. (default: shapes)"),
        Flag(name="--epochs", field="epochs", value="INT", text="Passes over all of it. (default: 5)"),
        Flag(name="place", field="place", value="PATH", text="Where."),
        Flag(name="--kind", field="kind", value="{one,two}", text="Which. (default: two)"),
        Flag(name="--sizes", field="sizes", value="INT ...", text="How large. (default: 1 2)"),
        Flag(name="--pair", field="pair", value="INT INT", text="Both; default: none."),
        Flag(name="--rate", field="rate", value="NUMBER", text="How fast. Also: --lr. (default: 0.5)"),
        Flag(name="--quick", field="quick", value="", text="Soon."),
    ]


def test_help_has_usage_text_groups_and_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown().splitlines()
    assert lines[:5] == ["usage: prog do [FLAGS] PATH", "", "Do something.", "", "And say that it was done."]
    titles = [line for line in lines if line and not line.startswith(" ")][3:]
    assert titles == ["Arguments", "This command", "Data", "Training", "Help", "Examples"]
    assert lines[-1] == "  prog do --data x"
    assert "  --epochs INT            Passes over all of it. (default: 5)" in lines


@pytest.mark.parametrize("columns", [40, 60])
@pytest.mark.parametrize("command", ["compare", "doctor", "warmup"])
def test_in_a_narrow_terminal_nothing_is_cut(monkeypatch: pytest.MonkeyPatch, columns: int, command: str) -> None:
    config = cli.COMMANDS[command][0]
    monkeypatch.setenv("COLUMNS", "100")
    wide = shown(config)
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = shown(config)
    assert all(len(line) <= columns or len(line.split()) == 1 for line in narrow.splitlines())
    assert re.sub(r"[\s\\]", "", narrow) == re.sub(r"[\s\\]", "", wide)


def test_headings_are_bold_in_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\033[1mData\033[0m" in shown(output=Terminal())
    assert "\033" not in shown()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_flags_that_help_shows_are_those_that_tyro_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = cli.COMMANDS[command][0]
    with pytest.raises(SystemExit):
        tyro.cli(config, args=["--help"], config=(tyro.conf.FlagCreatePairsOff,))
    theirs = re.findall(r"^\W (--[a-z][a-z0-9-]*)", capsys.readouterr().out, flags=re.MULTILINE)
    ours = flags_of(config)
    aliases = {name for each in ours for name in re.findall(r"Also: (--[\w-]+)", each.text)}
    assert sorted({each.name for each in ours if not each.is_word}) == sorted(
        each if each not in aliases else _of_alias(each, ours) for each in theirs
    )
    assert all(each.text for each in ours)


def _of_alias(alias: str, flags: list[Flag]) -> str:
    return next(each.name for each in flags if f"Also: {alias}" in each.text)


def test_no_flag_is_in_two_groups() -> None:
    fields = [name for names in GROUPS.values() for name in names.split()]
    assert len(fields) == len(set(fields))


def test_every_command_has_examples_but_former_names() -> None:
    assert EXAMPLES.keys() == cli.COMMANDS.keys() - {"bench statistics", "bench recalibration"}


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_the_examples_of_a_command_are_parsed(line: str) -> None:
    seen: list[object] = []
    commands = {name: (flags, seen.append) for name, (flags, _) in cli.COMMANDS.items()}
    words = shlex.split(line)
    run_command(commands, words[words.index("steadynorm") + 1 :], prog="steadynorm", description="")
    (name,) = (name for name, lines in EXAMPLES.items() if line in lines)
    assert type(seen[0]) is cli.COMMANDS[name][0]


def test_an_example_may_be_copied_from_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for lines in EXAMPLES.values():
        text = command_help("prog", Config, lines, io.StringIO()).partition("Examples\n")[2]
        assert [shlex.split(each) for each in text.replace("\\\n", "").splitlines()] == [shlex.split(x) for x in lines]

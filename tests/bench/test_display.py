import io
import sys
import threading

import pytest

from steadynorm.bench.display import open_display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO) -> str:
    with open_display(stream) as display:
        display.begin("norm_relu 1x2x3x4", number=2, of=5)
        display.message("a [bold]line[/bold] that is much longer than a terminal is wide " + "x" * 80)
    return stream.getvalue()


LINE = "a [bold]line[/bold] that is much longer than a terminal is wide " + "x" * 80 + "\n"


def test_a_file_gets_the_lines_alone() -> None:
    assert shown(io.StringIO()) == LINE


def test_a_terminal_gets_the_lines_whole_and_a_bar_that_says_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    output = shown(Terminal())
    assert LINE in output
    assert "1/5" in output
    assert "norm_relu 1x2x3x4" in output


def test_nothing_is_drawn_while_something_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    threads = threading.active_count()
    with open_display(Terminal()) as display:
        display.begin("norm_relu 1x2x3x4", number=2, of=5)
        assert threading.active_count() == threads


def test_without_rich_a_terminal_gets_the_lines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert shown(Terminal()) == LINE

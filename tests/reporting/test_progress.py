import io
import re
import sys
import threading

import pytest

from steadynorm.reporting import progress
from steadynorm.reporting.progress import Display, open_display

LINE = "epoch 1/3  train 0.300 33.3%"


def tell(display: Display) -> None:
    display.message("into [runs]")
    display.begin("none-seed0", number=1, of=2, left=2, text=": 3 epochs")
    display.advance("none-seed0", 1 / 6, "epoch 1/3, loss 1.250")
    display.advance("none-seed0", 1 / 3, LINE, lasting=True)
    display.end("none-seed0")
    display.begin("none-seed1", number=2, of=2, left=1, share=1 / 3, text=": 3 epochs, goes on after epoch 1")
    display.end("none-seed1", "none-seed1 diverged")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _wide_terminal_without_colors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")


def shown(stream: io.StringIO) -> str:
    with open_display(stream=stream) as display:
        tell(display)
    return stream.getvalue()


def test_without_a_terminal_each_text_that_lasts_is_one_plain_line() -> None:
    assert shown(io.StringIO()).splitlines() == [
        "into [runs]",
        "[1/2] none-seed0: 3 epochs",
        f"  {LINE}",
        "[2/2] none-seed1: 3 epochs, goes on after epoch 1",
        "  none-seed1 diverged",
    ]


def test_in_a_terminal_there_are_bars_and_what_finished_leaves_a_line() -> None:
    text = shown(Terminal())
    assert "[1/2] none-seed0" in text
    assert f"[1/2] none-seed0: {LINE}" in text
    assert "  none-seed1 diverged" in text and "[2/2] none-seed1:" not in text


def test_a_terminal_that_cannot_go_back_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = shown(Terminal())
    assert "\x1b" not in text and "[1/2] none-seed0" in text and f"  {LINE}\n" in text


def test_no_color_leaves_colours_out_of_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colours.search(shown(Terminal()))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours.search(shown(Terminal()))


def test_what_another_process_tells_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with open_display(shown=False) as display:
        tell(display)
    assert capsys.readouterr() == ("", "")


def live() -> progress._Live:
    return progress._Live(Terminal())


def bars(shown: progress._Live) -> dict[str, tuple[float, float | None]]:
    return {task.description: (round(task.completed, 9), task.total) for task in shown.bars.tasks if task.visible}


def test_the_bars_count_what_is_done_of_one_and_of_all() -> None:
    found = live()
    found.begin("a", number=2, of=4, left=3)
    found.advance("a", 0.25, "epoch 1/3, loss 1.250")
    found.advance("a", 0.5)
    assert bars(found) == {"all": (1.5, 4), "[2/4] a": (0.5, 1)}
    assert found.bars.tasks[-1].fields["text"] == "epoch 1/3, loss 1.250"
    found.end("a")
    found.begin("b", number=3, of=4, left=2, share=0.25)
    assert bars(found) == {"all": (2.25, 4), "[3/4] b": (0.25, 1)}


def test_what_runs_at_once_has_a_bar_each_and_ends_in_any_order() -> None:
    found = live()
    found.begin("a", number=1, of=3, left=3)
    found.begin("b", number=2, of=3, left=3)
    found.advance("a", 0.5)
    found.advance("b", 0.75)
    assert bars(found) == {"all": (1.25, 3), "[1/3] a": (0.5, 1), "[2/3] b": (0.75, 1)}
    found.end("b")
    found.end("c")  # of another worker
    assert bars(found) == {"all": (2.5, 3), "[1/3] a": (0.5, 1)}


def test_a_piece_that_begins_again_has_one_bar() -> None:
    found = live()
    for _ in range(2):
        found.begin("a", number=1, of=2, left=2)
    assert bars(found) == {"all": (0, 2), "[1/2] a": (0, 1)}
    assert len(found.bars.tasks) == 2


def test_news_after_the_end_change_nothing() -> None:
    found = live()
    found.begin("a", number=1, of=2, left=2)
    found.end("a")
    before = bars(found)
    found.advance("a", 0.5, "late")
    assert bars(found) == before


def test_lines_of_what_runs_at_once_stand_under_their_names() -> None:
    out = io.StringIO()
    plain = progress._Plain(out)
    plain.begin("a", number=1, of=2)
    plain.begin("b", number=2, of=2)
    for name in ("a", "a", "b"):
        plain.advance(name, 0.5, "line", lasting=True)
    assert out.getvalue().splitlines()[2:] == ["a", "  line", "  line", "b", "  line"]


def test_a_message_cannot_steer_the_terminal() -> None:
    out = io.StringIO()
    progress._Plain(out).message("into runs/\x1b[2Ja")
    assert out.getvalue() == "into runs/\\x1b[2Ja\n"
    progress._Live(out).message("into runs/\x1b[2Jb")
    assert out.getvalue().endswith("into runs/\\x1b[2Jb\n")


def test_of_what_did_not_end_well_no_line_of_numbers_stays() -> None:
    out = io.StringIO()
    shown = progress._Live(out)
    shown.begin("a", number=1, of=2)
    shown.advance("a", 0.5, LINE, lasting=True)
    shown.end("a", "a diverged")
    assert LINE not in out.getvalue() and "  a diverged" in out.getvalue()


LONG = "a [bold]line[/bold] :warning: that is much longer than a terminal is wide " + "x" * 200 + "\n"


def shown_while_timed(stream: io.StringIO) -> str:
    with open_display(stream=stream, timed=True) as display:
        display.begin("norm_relu 1x2x3x4", number=2, of=5)
        display.message(LONG.strip())
        display.end("norm_relu 1x2x3x4")
    return stream.getvalue()


def test_while_speeds_are_measured_a_file_gets_the_messages_alone() -> None:
    assert shown_while_timed(io.StringIO()) == LONG


def test_a_terminal_gets_messages_whole_and_a_bar_that_says_what_is_measured() -> None:
    output = shown_while_timed(Terminal())
    assert LONG in output
    assert "[2/5] norm_relu 1x2x3x4" in output


def test_nothing_is_drawn_while_something_is_measured() -> None:
    threads = threading.active_count()
    with open_display(stream=Terminal(), timed=True) as display:
        display.begin("norm_relu 1x2x3x4", number=2, of=5)
        assert threading.active_count() == threads
        assert isinstance(display, progress._Live) and not display.bars.live.auto_refresh
    with open_display(stream=Terminal()) as display:
        assert isinstance(display, progress._Live) and display.bars.live.auto_refresh


def test_what_is_measured_is_drawn_when_it_begins() -> None:
    terminal = Terminal()
    with open_display(stream=terminal, timed=True) as display:
        display.begin("norm_relu 1x2x3x4", number=2, of=5)
        assert "[2/5] norm_relu 1x2x3x4" in terminal.getvalue() and "all" in terminal.getvalue()


def test_without_rich_a_terminal_gets_the_lines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    assert shown_while_timed(Terminal()) == LONG
    assert shown(Terminal()) == shown(io.StringIO())

import io
from dataclasses import replace

import pytest
from rich.console import Console

from steadynorm.lab import progress
from steadynorm.lab.progress import Display, open_display
from steadynorm.reporting.records import RunRecord, RunSpec
from tests.support.records import EPOCH

SPEC = RunSpec(arm="none", seed=0, lr=0.1, epochs=3)


def tell(display: Display) -> None:
    running = RunRecord(spec=SPEC, status="running")
    display.message("into [runs]")
    display.begin(SPEC, number=1, of=2, epochs_done=0, epochs_left=6)
    display.step(running, step=8, steps=16, loss=1.25)
    after = RunRecord(spec=SPEC, status="running", epochs=(EPOCH,))
    display.epoch(after)
    display.end(RunRecord(spec=SPEC, status="finished", epochs=(EPOCH,)))
    display.begin(SPEC, number=2, of=2, epochs_done=1, epochs_left=2)
    display.end(RunRecord(spec=SPEC, status="diverged", diverged_at_step=77))


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, highlight=False, color_system=None)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    with open_display() as display:
        tell(display)
    return out.getvalue()


def test_without_a_terminal_each_epoch_is_one_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, terminal=False).splitlines()
    assert lines == [
        "into [runs]",
        "[1/2] none-lr0.1-seed0: 3 epochs",
        "  epoch 1/3  train 0.300 33.3%  validation inf 0.0%  gradient 0.00  1,234 images/s  6.5 s",
        "[2/2] none-lr0.1-seed0: 3 epochs, goes on behind epoch 1",
        "  none-lr0.1-seed0 diverged: its loss was not finite at step 77",
    ]


def test_in_a_terminal_a_bar_shows_epoch_and_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    assert "[1/2] none-lr0.1-seed0" in text
    assert "all networks" in text


def test_in_a_terminal_finished_networks_leave_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    assert "[1/2] none-lr0.1-seed0: train 0.300 33.3%  validation inf 0.0%" in text
    assert "diverged: its loss was not finite at step 77" in text


OTHER = replace(SPEC, arm="batch_norm")


def live() -> progress._Live:
    return progress._Live(Console(file=io.StringIO(), force_terminal=True))


def bars(shown: progress._Live) -> dict[str, tuple[float, float | None]]:
    return {task.description: (task.completed, task.total) for task in shown.bars.tasks if task.visible}


def test_the_bars_count_epochs_of_one_and_of_all_networks() -> None:
    found = live()
    found.begin(SPEC, number=1, of=2, epochs_done=0, epochs_left=6)
    found.step(RunRecord(spec=SPEC), step=8, steps=16, loss=None)
    assert bars(found) == {"all networks": (0.5, 6), "[1/2] none-lr0.1-seed0": (0.5, 3)}
    found.step(RunRecord(spec=SPEC, epochs=(EPOCH, EPOCH)), step=16, steps=16, loss=None)
    found.end(RunRecord(spec=SPEC, status="finished", epochs=(EPOCH, EPOCH, EPOCH)))
    found.begin(OTHER, number=2, of=2, epochs_done=1, epochs_left=2)
    found.step(RunRecord(spec=OTHER, epochs=(EPOCH,)), step=16, steps=16, loss=None)
    assert bars(found) == {"all networks": (4, 5), "[2/2] batch_norm-lr0.1-seed0": (2, 3)}


def test_networks_that_train_at_once_have_a_bar_each() -> None:
    found = live()
    found.begin(SPEC, number=1, of=3, epochs_done=0, epochs_left=9)
    found.step(RunRecord(spec=SPEC), step=8, steps=16, loss=None)
    found.begin(OTHER, number=2, of=3, epochs_done=0, epochs_left=9)
    found.step(RunRecord(spec=OTHER, epochs=(EPOCH,)), step=16, steps=16, loss=None)
    assert bars(found) == {
        "all networks": (2.5, 9),
        "[1/3] none-lr0.1-seed0": (0.5, 3),
        "[2/3] batch_norm-lr0.1-seed0": (2, 3),
    }
    found.end(RunRecord(spec=SPEC, status="diverged", diverged_at_step=9))
    found.begin(replace(SPEC, seed=1), number=3, of=3, epochs_done=0, epochs_left=4)
    found.step(RunRecord(spec=replace(SPEC, seed=1)), step=16, steps=16, loss=None)
    assert bars(found)["all networks"] == (3.5, 6.5)


def test_news_behind_the_end_change_nothing() -> None:
    found = live()
    found.begin(SPEC, number=1, of=2, epochs_done=0, epochs_left=6)
    found.end(RunRecord(spec=SPEC, status="finished", epochs=(EPOCH,)))
    before = bars(found)
    found.step(RunRecord(spec=SPEC), step=8, steps=16, loss=1.0)
    assert bars(found) == before


def test_cells_count_as_they_end() -> None:
    found = live()
    found.begin_cell("a", number=2, of=4)
    found.advance(0.5)
    assert bars(found) == {"all cells": (1.5, 4), "[2/4] a": (0.5, 1.0)}
    found.end_cell("a")
    found.begin_cell("b", number=3, of=4)
    found.begin_cell("c", number=4, of=4)
    found.end_cell("c")
    assert bars(found) == {"all cells": (3, 4), "[3/4] b": (0, 1.0)}


def test_lines_of_networks_that_train_at_once_stand_under_their_names() -> None:
    out = io.StringIO()
    plain = progress._Plain(Console(file=out, width=200))
    plain.begin(SPEC, number=1, of=2, epochs_done=0, epochs_left=6)
    plain.begin(OTHER, number=2, of=2, epochs_done=0, epochs_left=6)
    for spec in (SPEC, SPEC, OTHER):
        plain.epoch(RunRecord(spec=spec, epochs=(EPOCH,)))
    starts = [line.split("  train")[0] for line in out.getvalue().splitlines()]
    line = "  epoch 1/3"
    assert starts[2:] == ["none-lr0.1-seed0", line, line, "batch_norm-lr0.1-seed0", line]


def test_a_message_cannot_steer_the_terminal() -> None:
    out = io.StringIO()
    progress._Plain(Console(file=out, width=80)).message("into runs/\x1b[2Ja")
    assert out.getvalue() == "into runs/\\x1b[2Ja\n"

import io

import pytest
from rich.console import Console

from steadynorm.lab import progress
from steadynorm.lab.progress import Display, open_display
from steadynorm.lab.records import RunRecord, RunSpec
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


def test_the_bars_count_epochs_of_one_and_of_all_networks() -> None:
    live = progress._Live(Console(file=io.StringIO(), force_terminal=True))
    live.begin(SPEC, number=1, of=2, epochs_done=0, epochs_left=6)
    live.step(RunRecord(spec=SPEC), step=8, steps=16, loss=None)
    network, whole = live.bars.tasks
    assert (network.completed, network.total) == (0.5, 3)
    assert (whole.completed, whole.total) == (0.5, 6)
    live.step(RunRecord(spec=SPEC, epochs=(EPOCH, EPOCH)), step=16, steps=16, loss=None)
    live.begin(SPEC, number=2, of=2, epochs_done=0, epochs_left=3)
    live.step(RunRecord(spec=SPEC), step=16, steps=16, loss=None)
    assert (network.completed, network.total) == (1, 3)
    assert (whole.completed, whole.total) == (4, 6)

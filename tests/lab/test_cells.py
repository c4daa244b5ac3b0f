import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steadynorm.lab import cells as lab_cells
from steadynorm.lab.cells import Job, Line, Model, State
from steadynorm.lab.experiment import Task
from steadynorm.lab.experiments.landscape import LandscapeConfig
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell, Factors, Measurement, read_record
from steadynorm.reporting.run_directory import RunDirectory
from tests.support.experiments import Recorder, tiny_dataset
from tests.support.records import RECORD

GRID: list[Factors] = [{"arm": arm, "lr": 0.1, "seed": 0} for arm in ("none", "batch_norm")]


class Measurer:
    """Measures twice the seed and what cannot be written exactly; fails at an arm."""

    def __init__(self, *, fails_at: str = "") -> None:
        self.seen: list[str] = []
        self.fails_at = fails_at

    def __call__(self, job: Job) -> Iterator[Measurement]:
        self.seen.append(job.factors["arm"])
        job.advance(0.5, "")
        yield Measurement(quantity="twice", value=2.0 * job.factors["seed"])
        if job.factors["arm"] == self.fails_at:
            raise KeyboardInterrupt
        yield Measurement(quantity="loss", subject="conv1, odd", step=3, value=0.1 + 0.2)
        yield Measurement(quantity="loss", step=4, value=float("inf"))


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path)
    made.begin(RECORD)
    return made


def measure_cells(
    grid: list[Factors],
    measurer: Callable[[Job], Iterator[Any]],
    directory: RunDirectory,
    display: Recorder | None = None,
    cells: dict[str, Cell] | None = None,
    *,
    json: bool = False,
) -> list[Cell]:
    task = Task(
        config=LandscapeConfig(json=json),
        record=RECORD,
        dataset=tiny_dataset(),
        directory=directory,
        display=display or Recorder(),
        cells=cells if cells is not None else {},
    )
    return lab_cells.measure_cells(grid, lambda _: measurer, task)


def without_times(cells: list[Cell]) -> list[object]:
    return [(cell.factors, cell.measurements, cell.status) for cell in cells]


def test_cells_come_back_from_the_tables_to_the_last_digit(directory: RunDirectory) -> None:
    cells = measure_cells(GRID, Measurer(), directory)
    assert [*read_record(directory.path).cells] == cells
    assert [row.value for row in cells[1].measurements] == [0.0, 0.1 + 0.2, float("inf")]
    assert all(cell.seconds >= 0 for cell in cells)


def test_a_cell_is_named_by_its_factors() -> None:
    assert Cell(factors=GRID[0]).name == "none-lr0.1-seed0"


def test_a_stop_leaves_whole_cells_only_and_says_which_wait(directory: RunDirectory) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure_cells(GRID, Measurer(fails_at="batch_norm"), directory)
    first, second = read_record(directory.path).cells
    assert first.has_ended and len(first.measurements) == 3
    assert not second.has_ended and second.measurements == ()


def test_measured_cells_are_not_measured_again_and_the_tables_are_the_same(
    directory: RunDirectory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = RunDirectory(tmp_path_factory.mktemp("undisturbed"))
    undisturbed = measure_cells(GRID, Measurer(), other)
    with pytest.raises(KeyboardInterrupt):
        measure_cells(GRID, Measurer(fails_at="batch_norm"), directory)
    again = Measurer()
    cells = measure_cells(GRID, again, directory)
    assert again.seen == ["batch_norm"]
    assert without_times(cells) == without_times(undisturbed)


def test_the_display_hears_of_every_cell(directory: RunDirectory) -> None:
    display = Recorder()
    measure_cells(GRID, Measurer(), directory, display)
    assert display.begun == ["1/2 none-lr0.1-seed0", "2/2 batch_norm-lr0.1-seed0"]
    assert display.ended == ["none-lr0.1-seed0", "batch_norm-lr0.1-seed0"]
    assert display.shares == [0.5, 0.5]


def test_a_line_of_a_cell_without_states_is_shown(directory: RunDirectory) -> None:
    def told(job: Job) -> Iterator[Line]:
        yield Line(share=0.5, text="half")

    display = Recorder()
    (cell,) = measure_cells(GRID[:1], told, directory, display)
    assert (display.lines, cell.measurements, cell.status) == (["half"], (), "finished")


def test_a_damaged_state_is_refused_by_name(directory: RunDirectory) -> None:
    place = directory.path / "state" / "none-lr0.1-seed0.safetensors"
    place.parent.mkdir()
    place.write_text("{")
    with pytest.raises(UserError, match=r"none-lr0\.1-seed0\.safetensors: the state is damaged.*Remove it"):
        measure_cells(GRID, Measurer(), directory)


def test_a_cell_whose_name_is_another_ones_is_refused(directory: RunDirectory) -> None:
    measure_cells(GRID[:1], Measurer(), directory)
    with pytest.raises(UserError, match=r"holds .*, not "):
        directory.load_state(Cell(factors={"arm": "none", "rate": "lr0.1", "seed": 0}))


def test_cells_from_before_stay_in_the_tables(directory: RunDirectory) -> None:
    cells: dict[str, Cell] = {}
    for grid in (GRID[:1], GRID[1:]):
        measure_cells(grid, Measurer(), directory, cells=cells)
    assert [cell.factors for cell in read_record(directory.path).cells] == GRID


def test_a_number_that_is_not_finite_where_it_diverged_is_no_error(directory: RunDirectory) -> None:
    def diverging(job: Job) -> Iterator[Measurement]:
        yield Measurement(step=3, quantity="diverged", value=1.0)

    (cell,) = measure_cells(GRID[:1], diverging, directory)
    assert (cell.status, cell.diverged_at_step) == ("diverged", 3)
    assert [*read_record(directory.path).cells] == [cell]


class Counter:
    """Counts to three, with a state after each number, and can fail after one."""

    def __init__(self, *, fails_after: int = 3) -> None:
        self.fails_after = fails_after
        self.counted: list[int] = []

    def __call__(self, job: Job) -> Iterator[Measurement | State | Model]:
        done = int(job.tensors["count"]) if job.tensors else 0
        for number in range(done + 1, 4):
            self.counted.append(number)
            yield Measurement(step=number, quantity="number", value=number)
            state = {"count": torch.tensor(number)}
            yield State(tensors=state, share=number / 3, text=f"counted to {number}")
            if number == self.fails_after < 3:
                yield Measurement(step=number, quantity="lost", value=number)
                raise KeyboardInterrupt
        yield Model(tensors={"count": torch.tensor(3)}, metadata={})


def test_a_cell_with_states_goes_on_after_its_last(directory: RunDirectory) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure_cells(GRID[:1], Counter(fails_after=2), directory)
    (stopped,) = read_record(directory.path).cells
    assert (stopped.status, stopped.series("number")) == ("running", {1: 1.0, 2: 2.0})
    display, again = Recorder(), Counter()
    (cell,) = measure_cells(GRID[:1], again, directory, display)
    assert again.counted == [3] and display.lines == ["counted to 3"]
    assert (cell.status, cell.series("number"), cell.series("lost")) == ("finished", {1: 1.0, 2: 2.0, 3: 3.0}, {})
    assert cell.seconds >= stopped.seconds
    assert int(load_file(directory.checkpoint_path(cell))["count"]) == 3


def test_measurements_of_unknown_cells_are_a_damaged_record(directory: RunDirectory) -> None:
    measure_cells(GRID, Measurer(), directory)
    (directory.path / "cells.json").write_text("[]")
    with pytest.raises(UserError, match="a record is damaged"):
        read_record(directory.path)


def test_all_that_is_planned_is_in_the_tables_before_the_first_is_measured(directory: RunDirectory) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure_cells(GRID, Measurer(fails_at="none"), directory)
    assert [(cell.factors, cell.status) for cell in read_record(directory.path).cells] == [
        (factors, "waiting") for factors in GRID
    ]


def test_a_cell_is_told_as_a_line_when_it_ends(directory: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    measure_cells(GRID, Measurer(), directory)
    assert capsys.readouterr().out == ""
    (cell,) = measure_cells([{"arm": "none", "seed": 1}], Measurer(), directory, json=True)
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    rows = [["", 0, "twice", 2.0], ["conv1, odd", 3, "loss", 0.1 + 0.2], ["", 4, "loss", None]]
    assert [list(row.values()) for row in line.pop("measurements")] == rows
    assert line == {
        "kind": "cell",
        "cell": "none-seed1",
        "factors": cell.factors,
        "status": "finished",
        "seconds": cell.seconds,
        "diverged_at_step": None,
    }

from collections.abc import Iterator
from pathlib import Path

import pytest

from steadynorm.lab import cells as lab_cells
from steadynorm.lab.experiment import Task
from steadynorm.lab.experiments.landscape import LandscapeConfig
from steadynorm.lab.run_directory import RunDirectory
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import CellRecord, Factor, Measurement, read_record
from tests.support.experiments import Recorder, tiny_dataset
from tests.support.records import RECORD

GRID: list[dict[str, Factor]] = [{"arm": arm, "lr": 0.1, "seed": 0} for arm in ("none", "batch_norm")]


class Measurer:
    """Measures twice the seed and what cannot be written exactly; fails at an arm."""

    def __init__(self, *, fails_at: str = "") -> None:
        self.seen: list[str] = []
        self.fails_at = fails_at

    def __call__(self, factors, advance) -> Iterator[Measurement]:
        self.seen.append(factors["arm"])
        advance(0.5)
        yield Measurement(quantity="twice", value=2.0 * factors["seed"])
        if factors["arm"] == self.fails_at:
            raise KeyboardInterrupt
        yield Measurement(quantity="loss", subject="conv1, odd", step=3, value=0.1 + 0.2)
        yield Measurement(quantity="loss", step=4, value=float("inf"))


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path)
    made.begin(RECORD)
    return made


def measure_cells(
    grid: list[dict[str, Factor]], measurer: Measurer, directory: RunDirectory, display: Recorder | None = None
) -> tuple[CellRecord, ...]:
    task = Task(
        config=LandscapeConfig(),
        record=RECORD,
        dataset=tiny_dataset(),
        directory=directory,
        display=display or Recorder(),
    )
    return lab_cells.measure_cells(grid, lambda _: measurer, task)


def without_times(cells: tuple[CellRecord, ...]) -> list[object]:
    return [(cell.factors, cell.measurements, cell.is_measured) for cell in cells]


def test_cells_come_back_from_the_tables_to_the_last_digit(directory: RunDirectory) -> None:
    cells = measure_cells(GRID, Measurer(), directory)
    assert read_record(directory.path).cells == cells
    assert [row.value for row in cells[1].measurements] == [0.0, 0.1 + 0.2, float("inf")]
    assert all(cell.seconds >= 0 for cell in cells)


def test_a_cell_is_named_by_its_factors() -> None:
    assert CellRecord(factors=GRID[0]).name == "none-lr0.1-seed0"


def test_a_stop_leaves_whole_cells_only_and_says_which_wait(directory: RunDirectory) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure_cells(GRID, Measurer(fails_at="batch_norm"), directory)
    first, second = read_record(directory.path).cells
    assert first.is_measured and len(first.measurements) == 3
    assert not second.is_measured and second.measurements == ()


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
    assert display.ended_cells == ["none-lr0.1-seed0", "batch_norm-lr0.1-seed0"]
    assert display.shares == [0.5, 0.5]


@pytest.mark.parametrize("content", ["{", "{}", '{"factors": {}, "measurements": [{"value": 1}], "seconds": 1}'])
def test_a_damaged_cell_is_refused_by_name(directory: RunDirectory, content: str) -> None:
    place = directory.path / "state" / "none-lr0.1-seed0.json"
    place.parent.mkdir()
    place.write_text(content)
    with pytest.raises(UserError, match=r"none-lr0\.1-seed0\.json: is damaged.*Remove it"):
        measure_cells(GRID, Measurer(), directory)


def test_a_cell_of_other_factors_is_refused(directory: RunDirectory) -> None:
    measure_cells(GRID[:1], Measurer(), directory)
    with pytest.raises(UserError, match=r"holds .*, not "):
        directory.load_cell(CellRecord(factors={"arm": "none", "rate": "lr0.1", "seed": 0}))


def test_measurements_of_unknown_cells_are_a_damaged_record(directory: RunDirectory) -> None:
    measure_cells(GRID, Measurer(), directory)
    (directory.path / "cells.json").write_text("[]")
    with pytest.raises(UserError, match="a record is damaged"):
        read_record(directory.path)

"""Records of the first format, as version 0.1 wrote them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell, Measurement, Record, format_of, read_record
from tests.support.first_format import write_first_format
from tests.support.records import CELLS, RECORD

PROBED = Cell(
    factors={"part": "stream", "seed": 0},
    status="finished",
    seconds=2.5,
    measurements=(Measurement(subject="gate", quantity="accuracy", value=0.1 + 0.2),),
)
LOST = Cell(
    factors={"part": "stream", "seed": 1},
    status="diverged",
    seconds=2.5,
    measurements=(Measurement(step=3, quantity="diverged", value=1.0),),
)
WAITING = Cell(factors={"part": "stream", "seed": 2})
WHOLE = replace(RECORD, cells=(*CELLS, PROBED, LOST, WAITING))


def content(record: Record) -> list[object]:
    """All but the seconds of networks, which were not kept, in any order of a cell's rows."""
    return [
        (cell.factors, cell.status, None if cell.is_network else cell.seconds, {*cell.measurements})
        for cell in record.cells
    ]


def test_networks_and_cells_become_cells(tmp_path: Path) -> None:
    write_first_format(tmp_path, WHOLE)
    assert format_of(tmp_path) == 1
    found = read_record(tmp_path)
    assert content(found) == content(WHOLE)
    assert [cell.name for cell in found.cells] == [cell.name for cell in WHOLE.cells]
    assert found.cells[1].diverged_at_step == 7


def test_networks_of_before_there_were_batch_sizes_and_depths_are_read(tmp_path: Path) -> None:
    write_first_format(tmp_path, RECORD)
    heads = json.loads((tmp_path / "runs.json").read_text())
    for head in heads:
        del head["batch_size"], head["depth"], head["variant"], head["purpose"]
    (tmp_path / "runs.json").write_text(json.dumps(heads))
    assert content(read_record(tmp_path)) == content(RECORD)


FILES = ["config.json", "runs.json", "metrics.csv", "gradient_norms.csv"]


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write_first_format(tmp_path, RECORD)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"not a run directory, {missing} is missing"):
        read_record(tmp_path)


@pytest.mark.parametrize("damaged", [*FILES, "cells.json", "measurements.csv"])
@pytest.mark.parametrize("content", [b"", b"7", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_file_is_refused(tmp_path: Path, damaged: str, content: bytes) -> None:
    write_first_format(tmp_path, WHOLE)
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(UserError, match="a record is damaged") as refused:
        read_record(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("table", ["metrics.csv", "gradient_norms.csv", "measurements.csv"])
def test_numbers_of_an_unknown_network_or_cell_are_refused(tmp_path: Path, table: str) -> None:
    write_first_format(tmp_path, WHOLE)
    path = tmp_path / table
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, ",".join(["nothing", *lines[1].split(",")[1:]])]).replace('"conv1', '"conv1'))
    with pytest.raises(UserError, match="a record is damaged"):
        read_record(tmp_path)

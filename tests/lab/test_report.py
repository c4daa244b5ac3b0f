"""A report is made, or refused in one line, whatever someone has done to the files of a record."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steadynorm.lab import report
from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.lab.experiments.compare import CompareConfig
from steadynorm.lab.report import build_report
from steadynorm.reporting import build
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Record, head_of, read_record, write_record
from steadynorm.reporting.report import as_json
from tests.support.first_format import write_first_format
from tests.support.records import CELLS, record, summary_json

Write = Callable[[Path, Record], None]
VALUES = [None, True, -1, 2.5, "text", [], [[1]], {"a": {"b": []}}]
MADE = record(CELLS, epochs=2, milestones=[])


def places(content: Any, *before: Any) -> Iterator[tuple[Any, ...]]:
    """Give the way to everything in a JSON document that is in an object."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(content, dict):
            yield (*before, key)
        if isinstance(value, dict | list):
            yield from places(value, *before, key)


def edits(content: Any) -> Iterator[Any]:
    """Give the document with each field removed, and set to each of the values."""
    for *way, last in places(content):
        for value in (*VALUES, "removed"):
            edited = copy.deepcopy(content)
            inner = edited
            for key in way:
                inner = inner[key]
            if value == "removed":
                del inner[last]
            else:
                inner[last] = value
            yield edited


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """Take what would be written, which takes seconds."""
    found: list[Record] = []

    def take(directory: Path, record: Record, said: Any, *, files: Any) -> Path:
        report_json = json.dumps(as_json(head_of(record), said))
        assert "NaN" not in report_json
        found.append(record)
        return directory

    monkeypatch.setattr(report, "write_record_report", take)
    return found


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_record, "config.json"),
        (write_record, "cells.json"),
        (write_first_format, "config.json"),
        (write_first_format, "runs.json"),
    ],
)
def test_an_edited_file_ends_in_a_report_or_in_one_line(
    name: str, write: Write, tmp_path: Path, written: list[Record]
) -> None:
    write(tmp_path, MADE)
    path = tmp_path / name
    content, refused = json.loads(path.read_text()), 0
    for edited in edits(content):
        path.write_text(json.dumps(edited))
        try:
            build_report(tmp_path)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 2_000
            refused += 1
    assert refused > 100 and len(written) > 5


def test_a_report_of_the_first_format_says_the_same(tmp_path: Path) -> None:
    write_first_format(tmp_path, MADE)
    found, expected = summary_json(read_record(tmp_path)), summary_json(MADE)
    assert found == expected


def test_a_search_that_is_open_is_not_said_to_be_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notices: list[str] = []
    monkeypatch.setattr(build, "write_report", lambda place, *_, missing, **__: notices.append(missing) or place)
    place = {"batch_size": 64, "depth": 6}
    grid = [replace(cell, factors=cell.factors | place) for cell in CELLS if cell.has_ended]
    searching = replace(grid[-1], factors=grid[-1].factors | {"purpose": "stability"})
    config = {"lr": [0.1], "batch_size": [64], "depth": [6], "largest_rate": True, "epochs": 2, "milestones": []}
    for cells in ([*grid, searching], [*grid, replace(searching, status="running")]):
        write_record(tmp_path, replace(record(cells, **config), experiment="sweep"))
        build_report(tmp_path)
    over, running = notices
    n = len(grid) + 1
    assert f"{n} of {n} networks have ended of those planned so far; more follow" in over
    assert running.endswith(f"{n - 1} of {n} networks have ended.")


def test_every_experiment_is_listed_under_its_own_name() -> None:
    assert all(one.name == name for name, one in EXPERIMENTS.items())
    assert EXPERIMENTS["compare"].config is CompareConfig

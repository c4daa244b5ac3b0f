import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from steadynorm.lab.training import network
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell, Measurement, Status, read_config, read_record, write_record
from tests.support.records import CELLS, RECORD

FILES = ["config.json", "cells.json", "measurements.csv"]


def test_a_record_is_read_back_exactly(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD
    assert read_config(tmp_path) == replace(RECORD, cells=())


def test_nan_is_read_back_as_nan(tmp_path: Path) -> None:
    cell = replace(CELLS[1], measurements=(Measurement(quantity="loss", value=math.nan),))
    write_record(tmp_path, replace(RECORD, cells=(cell,)))
    assert math.isnan(read_record(tmp_path).cells[0].last("loss"))


def test_names_differ_in_every_factor_but_the_epochs() -> None:
    usual = {"arm": "none", "seed": 0, "lr": 0.1, "epochs": 2}
    others = [{"arm": "x"}, {"seed": 1}, {"lr": 0.01}, {"lr": 0.1000001}, {"purpose": "tune"}, {"batch_size": 1}]
    names = {Cell(factors=network(**(usual | one))).name for one in ({}, *others)}
    assert len(names) == 7 and "tune-none-lr0.1-seed0" in names and "none-lr0.1-batch1-seed0" in names
    assert Cell(factors=network(**(usual | {"epochs": 9}))).name == "none-lr0.1-seed0"


def test_a_quantity_is_found_by_step_by_subject_and_at_its_last_step() -> None:
    rows = [("", 1, "a", 1.0), ("", 2, "a", 2.0), ("x", 1, "a", 3.0), ("y", 1, "b", 4.0)]
    cell = Cell(
        factors={}, measurements=tuple(Measurement(subject=s, step=n, quantity=q, value=v) for s, n, q, v in rows)
    )
    assert (cell.series("a"), cell.series("a", "x"), cell.series("b")) == ({1: 1.0, 2: 2.0}, {1: 3.0}, {})
    assert (cell.last("a"), cell.last("b", "y"), cell.values("a")) == (2.0, 4.0, {"": 2.0, "x": 3.0})
    with pytest.raises(UserError, match="is waiting without b"):
        cell.last("b")


def test_cells_are_selected_by_factors_and_by_their_absence() -> None:
    cells = [Cell(factors=factors) for factors in ({"arm": "a", "seed": 0}, {"arm": "a", "part": "x"}, {"arm": "b"})]
    record = replace(RECORD, cells=tuple(cells))
    assert record.select(arm="a") == cells[:2]
    assert record.select(arm="a", part=None) == cells[:1]
    assert record.networks == [] and len(RECORD.networks) == 2


def test_what_a_record_does_not_say_is_one_line(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    record = read_record(tmp_path)
    for mapping in (record.config, record.resolved, record.cells[0].factors):
        with pytest.raises(UserError, match="does not say 'nothing'"):
            mapping["nothing"]


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    write_record(tmp_path, RECORD)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=f"not a run directory, {missing} is missing"):
        read_record(tmp_path)


@pytest.mark.parametrize("damaged", FILES)
@pytest.mark.parametrize(
    "content", [b"", b"7", b"[[[", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b'{"a": ' + b"[" * 100_000]
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damaged: str, content: bytes) -> None:
    write_record(tmp_path, RECORD)
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(UserError, match="a record is damaged") as refused:
        read_record(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cell,subject,step,quantity,value\n", ""),
        ("cell,subject,step,quantity,value", "cell,step,subject,quantity,value"),
        ("cell,subject,step,quantity,value", "cell,subject,step,quantity,value,more"),
        (",1,val_loss,inf", ",1,val_loss"),
        (",1,val_loss,inf", ",1,val_loss,inf,1"),
        (",1,val_loss,inf", ",1,val_loss,much"),
        (",1,val_loss,inf", ",first,val_loss,inf"),
        ("none-lr0.1-seed1,,1,val_loss,inf", "nothing,,1,val_loss,inf"),
        (",1,val_loss,inf", ",1,val_loss,inf" + "1" * 200_000),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, before: str, after: str) -> None:
    write_record(tmp_path, RECORD)
    path = tmp_path / "measurements.csv"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(UserError, match="a record is damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize("version", [0, -1, 3, 10**6])
def test_another_format_is_refused(tmp_path: Path, version: int) -> None:
    write_record(tmp_path, replace(RECORD, versions={"steadynorm": "9.9"}))
    head = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(head | {"format": version}))
    with pytest.raises(UserError, match=rf"has format {version}, .*Use the version that wrote it \(9\.9\)"):
        read_record(tmp_path)


@pytest.mark.parametrize("versions", [{"steadynorm": "9.9"}, [], None])
def test_another_format_is_told_before_its_fields(tmp_path: Path, versions: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"format": 3, "versions": versions, "name": "of later versions"}))
    with pytest.raises(UserError, match=rf"has format 3, .*\({'9.9' if versions else 'unknown'}\)"):
        read_record(tmp_path)


def test_a_cell_under_another_name_is_refused(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    path = tmp_path / "cells.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.raises(UserError, match=r"a record is damaged .*none-lr0\.1-seed1"):
        read_record(tmp_path)


@pytest.mark.parametrize(("status", "has_ended"), [("waiting", 0), ("running", 0), ("finished", 1), ("diverged", 1)])
def test_a_cell_has_ended_where_nothing_is_left_to_do(status: Status, has_ended: bool) -> None:
    assert replace(CELLS[0], status=status).has_ended == has_ended


@pytest.mark.parametrize("line", ["a,,1,b", "a,,1,b,2.0,3"])
def test_a_line_of_another_number_of_columns_is_named(tmp_path: Path, line: str) -> None:
    write_record(tmp_path, RECORD)
    with (tmp_path / "measurements.csv").open("a") as table:
        table.write(f"{line}\n")
    found = line.count(",") + 1
    with pytest.raises(UserError, match=rf"measurements\.csv: line \d+ has {found} of 5 columns"):
        read_record(tmp_path)


def test_the_values_of_a_quantity_are_told_apart_by_subject() -> None:
    rows = [("stored", "accuracy", 0.5), ("gate", "accuracy", 0.6), ("", "images", 9.0)]
    cell = Cell(
        factors={}, measurements=tuple(Measurement(subject=one, quantity=of, value=value) for one, of, value in rows)
    )
    assert cell.values("accuracy") == {"stored": 0.5, "gate": 0.6}

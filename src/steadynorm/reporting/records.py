"""A record: what was run, and every number that was measured, as rows; how it is written and read back.

A record is a head and cells. A cell is one point of a grid: its factors (arm, seed, learning rate, stream ...), how far
it is, and its measurements. A trained network is a cell whose measurements are its epochs.

====================  ==================================================================================
``config.json``       the head: what was asked for, with versions, machine and command (:class:`Record`)
``cells.json``        one entry for each cell: its factors, its status, the seconds that it took
``measurements.csv``  one row for each measured number of a cell (:class:`Measurement`)
====================  ==================================================================================

These files are the interface between measuring and reporting: a report is made from them alone.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from steadynorm.reporting.failure import UserError
from steadynorm.reporting.files import write_text

__all__ = [
    "FORMAT",
    "HEAD",
    "Cell",
    "Factors",
    "Measurement",
    "Record",
    "Status",
    "file_word",
    "format_of",
    "head_of",
    "read_config",
    "read_record",
    "write_cells",
    "write_config",
    "write_record",
]

FORMAT = 2
"""Format of the files that are written; those of format 1 are read by :mod:`steadynorm.reporting.first_format`."""

Status = Literal["waiting", "running", "finished", "diverged"]
Factors = dict[str, Any]
"""Name -> text or number. A factor that does not distinguish a cell is absent."""
UNNAMED, SHORT = ("epochs",), {"batch_size": "batch"}  # in names of cells


def file_word(text: str) -> str:
    """Return a factor's text as the name of a cell has it: of ``label=...`` the label, else without what files refuse.

    >>> file_word("mine=package.norms:Mine,eps=0.001"), file_word("package.norms:Mine,eps=0.001")
    ('mine', 'package.norms.Mine,eps=0.001')
    """
    label, equals, _ = text.partition("=")
    if not (equals or ":" in text):
        return text
    named = equals and "," not in label and ":" not in label
    return label if named else re.sub(r"[^\w.,=+-]", ".", text)


class StoredFields(dict[str, Any]):
    """Factors, or fields of a head, as they were read: asking for one that is absent is one line for the user."""

    def __missing__(self, key: str) -> Any:  # noqa: ANN401 (it returns nothing)
        raise UserError(f"a record is damaged: it does not say {key!r}. Restore it, or run the experiment again.")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measured number; which quantities there are, the experiment's module says."""

    subject: str = ""
    """What was measured: a layer, a unit, a method; empty where it is the cell itself."""
    step: int = 0
    """Epoch or training step after which it was measured; 0 before the first, or where there are none."""
    quantity: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a grid and what was measured in it."""

    factors: Factors
    """What makes it this cell, in the order of its name."""
    status: Status = "waiting"
    """``diverged``: it has a measurement of that name, at the step whose loss was not finite."""
    seconds: float | None = None
    """Wall-clock time that it took so far; None where it is not known."""
    measurements: tuple[Measurement, ...] = ()

    @property
    def name(self) -> str:
        """Unique within an experiment, and a legal file name."""
        named = {name: value for name, value in self.factors.items() if name not in UNNAMED}
        return "-".join(
            file_word(value) if isinstance(value, str) else f"{SHORT.get(name, name)}{value!r}"
            for name, value in named.items()
        )

    @property
    def has_ended(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.status in ("finished", "diverged")

    @property
    def is_network(self) -> bool:
        """Whether it is a network that is trained epoch by epoch, and goes on after its last one."""
        return "epochs" in self.factors

    @property
    def diverged_at_step(self) -> int | None:
        """The step, counted from 1, at which the loss was first not finite."""
        return max(self.series("diverged"), default=None)

    def last(self, quantity: str, subject: str = "") -> float:
        """Return the value of a quantity at its last step.

        Raises:
            UserError: it was not measured.
        """
        found = self.series(quantity, subject)
        if not found:
            raise UserError(f"a record is damaged: {self.name} is {self.status} without {quantity}. Restore it.")
        return found[max(found)]

    def series(self, quantity: str, subject: str = "") -> dict[int, float]:
        """Return step -> value, without steps that were not measured."""
        return self._index.get((quantity, subject), {})

    def values(self, quantity: str) -> dict[str, float]:
        """Return subject -> value, of several steps the last."""
        return {row.subject: row.value for row in self.measurements if row.quantity == quantity}

    @cached_property
    def _index(self) -> dict[tuple[str, str], dict[int, float]]:
        found: dict[tuple[str, str], dict[int, float]] = {}
        for row in self.measurements:
            found.setdefault((row.quantity, row.subject), {})[row.step] = row.value
        return found


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything a report may say about an experiment."""

    experiment: str
    """Name of the command."""
    command: str
    """Shell command that reproduces the experiment."""
    created: str
    """Start, ISO 8601 in UTC."""
    config: dict[str, Any]
    """The command's configuration, every flag resolved."""
    resolved: dict[str, Any]
    """What ``auto`` became and what was measured before training: device, precision, data sizes, class names."""
    versions: dict[str, str]
    """Python and packages."""
    machine: dict[str, Any]
    """Processor, cores, memory, operating system."""
    cells: tuple[Cell, ...] = ()

    @property
    def networks(self) -> list[Cell]:
        """The cells that are trained networks."""
        return [cell for cell in self.cells if cell.is_network]

    def select(self, **factors: Any) -> list[Cell]:  # noqa: ANN401 (of several types)
        """Return the cells of these factors; None is one that a cell does not have."""
        return [cell for cell in self.cells if all(cell.factors.get(name) == one for name, one in factors.items())]


HEAD = tuple(field.name for field in fields(Record) if field.name != "cells")
"""What a record says of itself: all but its cells."""


def head_of(record: Record) -> dict[str, Any]:
    """Return what a record says of itself."""
    return {name: getattr(record, name) for name in HEAD}


def write_record(directory: Path, record: Record) -> None:
    """Write the three files of a record, each atomically."""
    write_cells(directory, record.cells)
    write_config(directory, record)


def write_config(directory: Path, record: Record) -> None:
    """Write ``config.json``: the record without its cells."""
    write_text(directory / "config.json", json.dumps({"format": FORMAT, **head_of(record)}, indent=2) + "\n")


def write_cells(directory: Path, cells: Iterable[Cell]) -> None:
    """Write ``cells.json`` and ``measurements.csv``, each atomically."""
    cells = tuple(cells)
    heads = [
        {"name": cell.name, "factors": cell.factors, "status": cell.status, "seconds": cell.seconds} for cell in cells
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(
        (cell.name, row.subject, row.step, row.quantity, row.value) for cell in cells for row in cell.measurements
    )
    write_text(directory / "cells.json", json.dumps(heads, indent=2) + "\n")
    write_text(directory / "measurements.csv", out.getvalue())


COLUMNS = ["cell", "subject", "step", "quantity", "value"]


@dataclass(frozen=True, kw_only=True)
class _CellHead:
    name: str
    factors: dict[str, str | int | float]
    status: Status
    seconds: float | None


def read_record(directory: Path) -> Record:
    """Read a run directory back, of this format or of the first.

    Raises:
        UserError: the directory is no run directory, or one of its files is damaged or of another format.
    """
    record, written_as = _read_head(directory)
    with damage_explained(directory):
        if written_as == 1:
            from steadynorm.reporting.first_format import read_cells

            return replace(record, cells=read_cells(directory))
        heads = decoded(directory / "cells.json", list[_CellHead])
        return replace(record, cells=joined(heads, read_measurements(directory)))


def read_config(directory: Path) -> Record:
    """Read ``config.json`` alone: the record without its cells.

    Raises:
        UserError: it is absent, damaged, or of another format.
    """
    return _read_head(directory)[0]


def format_of(directory: Path) -> int:
    """Say in which format a run directory was written; see :func:`read_config`."""
    return _read_head(directory)[1]


def _read_head(directory: Path) -> tuple[Record, int]:
    """Return the record without its cells, and its format, which is looked at first: others may have other fields."""
    with damage_explained(directory):
        content = decoded(directory / "config.json", dict[str, Any])
        written_as = _converted("config.json", content.get("format", 1), int)
        if 1 <= written_as <= FORMAT:
            head = _converted("config.json", {name: content[name] for name in HEAD if name in content}, Record)
            known = {name: StoredFields(getattr(head, name)) for name in ("config", "resolved", "machine")}
            return replace(head, **known), written_as
    versions = content.get("versions")
    wrote = versions.get("steadynorm", "unknown") if isinstance(versions, dict) else "unknown"
    raise UserError(
        f"{directory}: config.json has format {written_as}, this version of steadynorm reads up to {FORMAT}. "
        f"Use the version that wrote it ({wrote})."
    )


def _converted(where: str, content: Any, kind: Any) -> Any:  # noqa: ANN401 (as msgspec has it)
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {error}") from error


def joined(heads: list[_CellHead], rows: dict[str, list[Measurement]]) -> tuple[Cell, ...]:
    """Put the measurements into their cells.

    Raises:
        ValueError: there are measurements of another cell.
    """
    cells = tuple(
        Cell(
            factors=StoredFields(head.factors),
            status=head.status,
            seconds=head.seconds,
            measurements=tuple(rows.pop(head.name, ())),
        )
        for head in heads
    )
    others = [head.name for head, cell in zip(heads, cells, strict=True) if cell.name != head.name]
    if others or rows:
        raise ValueError(f"measurements.csv: cells.json has no {', '.join([*others, *rows])}")
    return cells


def read_measurements(directory: Path) -> dict[str, list[Measurement]]:
    """Read ``measurements.csv``: name of a cell -> its rows."""
    found: dict[str, list[Measurement]] = {}
    for name, subject, step, quantity, value in read_rows(directory / "measurements.csv", COLUMNS):
        row = Measurement(subject=subject, step=int(step), quantity=quantity, value=float(value))
        found.setdefault(name, []).append(row)
    return found


def read_rows(path: Path, columns: list[str]) -> Iterator[list[str]]:
    """Read the lines of a table under a head of these columns.

    Raises:
        ValueError: the head or a line has others.
    """
    with path.open(newline="", encoding="utf-8") as lines:
        table = csv.reader(lines)
        if next(table, None) != columns:
            raise ValueError(f"{path.name}: its columns must be {', '.join(columns)}")
        for line in table:
            if len(line) != len(columns):
                raise ValueError(f"{path.name}: line {table.line_num} has {len(line)} of {len(columns)} columns")
            yield line


def decoded(path: Path, kind: Any) -> Any:  # noqa: ANN401 (whatever the type says)
    """Read a JSON file of a type.

    Raises:
        ValueError: it is no JSON, or of another type.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}") from error


@contextlib.contextmanager
def damage_explained(directory: Path) -> Iterator[None]:
    """Say in one line what is wrong with a file of a run directory."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"{directory}: not a run directory, {Path(error.filename).name} is missing. "
            "Give the directory that a command printed as its report's place."
        ) from error
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{directory}: a record is damaged ({error}). Restore it, or run the experiment again."
        ) from error

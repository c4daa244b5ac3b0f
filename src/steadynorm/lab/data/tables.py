"""Images and labels in columns of Arrow tables: which columns they are in, and what the labels mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from steadynorm.lab.data.arrays import as_bytes, as_rows
from steadynorm.lab.data.class_folders import TRAIN, VALIDATION
from steadynorm.lab.data.parts import Part, Parts, Reading
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.words import listing

__all__ = ["Table", "parts_of_tables"]

IMAGE = ("image", "img")
LABEL = ("label", "labels", "fine_label", "fine_labels")
COARSE = ("coarse_label", "coarse_labels")


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """A file with rows.

    Args:
        path: path of the file.
        schema: of its columns.
        count: its rows.
        column: gives a column whole.
        cells: gives a column's cells at some rows, which rise.
    """

    path: Path
    schema: Any
    count: int
    column: Callable[[str], Any]
    cells: Callable[[str, NDArray[np.int64]], Iterator[Any]]


def parts_of_tables(name: str, words: dict[str, Sequence[Table]], reading: Reading) -> Parts:
    """Make a data set of tables.

    Args:
        name: name of the data set.
        words: of the parts -> the tables of each. A single part may have any name.
        reading: how.

    Raises:
        UserError: there are no images, or their columns cannot be determined.
    """
    train, validation = _chosen(name, list(words), reading)
    image, label = find_columns(words[train][0], reading)
    return Parts(
        name=name,
        train=_part(words[train], image, label, reading),
        validation=None if validation is None else _part(words[validation], image, label, reading),
        classes=_class_names(words[train][0].schema, label),
    )


def _chosen(name: str, words: Sequence[str], reading: Reading) -> tuple[str, str | None]:
    """Choose the part for training and, where there is one, that for validation."""
    train = next((word for word in TRAIN if word in words), words[0] if len(words) == 1 else None)
    if train is None:
        raise UserError(f"{reading.flag}: {name}: must have a part train, got {listing(words)}.")
    others = [word for word in VALIDATION if word in words and word != train]
    if unused := [word for word in words if word not in (train, *others[:1])]:
        chosen = f"{others[0]} is the validation part" if others else f"{train} is used"
        reading.progress(f"{name}: {chosen}; {listing(unused)} {'is' if len(unused) == 1 else 'are'} not used")
    return train, others[0] if others else None


def find_columns(table: Table, reading: Reading) -> tuple[str, str]:
    """Return the names of the columns with the images and the labels.

    Raises:
        UserError: they cannot be determined, or are not there.
    """
    fields = {field.name: field.type for field in table.schema}
    if reading.columns is not None:
        for name in reading.columns:
            if name not in fields:
                raise UserError(f"--columns: {table.path}: must be columns, got {name}. There are {_shown(table)}.")
        return reading.columns
    images = [name for name in IMAGE if name in fields] or [n for n, kind in fields.items() if _holds_images(kind)]
    labels = [name for name in LABEL if name in fields]
    if len(images) != 1 or len(labels) != 1:
        what = "images" if len(images) != 1 else "labels"
        raise UserError(
            f"{reading.flag}: {table.path}: must have one column {' or '.join(IMAGE)} and one {', '.join(LABEL)}, "
            f"got {_shown(table)}. Name the images and the labels by --columns; the {what} are ambiguous."
        )
    if coarse := [name for name in COARSE if name in fields]:
        reading.progress(f"labels are {labels[0]}; for the others give --columns {images[0]} {coarse[0]}")
    return images[0], labels[0]


def _shown(table: Table) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in table.schema)


def _holds_images(kind: Any) -> bool:  # noqa: ANN401 - pyarrow has no type annotations
    struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return bool(struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:  # noqa: ANN401
    """Return the names that Hugging Face's libraries keep beside a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    names = list(names.values()) if isinstance(names, dict) else names
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _part(tables: Sequence[Table], image: str, label: str, reading: Reading) -> Part:
    starts = np.cumsum([0, *(table.count for table in tables)])
    for table in tables:
        if missing := [name for name in (image, label) if name not in table.schema.names]:
            raise UserError(
                f"{reading.flag}: {table.path}: must have the columns {image} and {label} as the others have, got no "
                f"{missing[0]}."
            )

    def images(rows: NDArray[np.int64]) -> Iterator[Any]:
        for table, start in zip(tables, starts.tolist(), strict=False):
            within = rows[(rows >= start) & (rows < start + table.count)] - start
            if len(within):
                for row, cell in zip(within.tolist(), table.cells(image, within), strict=True):
                    yield _raw(cell, reading, f"{table.path}: row {row}")

    def called(row: int) -> str:
        place = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{tables[place].path}: row {row - starts[place]}"

    if not int(starts[-1]):
        raise UserError(f"{reading.flag}: {tables[0].path}: must hold images, got no rows.")
    return Part(
        count=int(starts[-1]),
        labels=np.concatenate([_labels(table, label) for table in tables]),
        images=images,
        called=called,
        sources=tuple(table.path for table in tables),
    )


def _raw(cell: Any, reading: Reading, what: str) -> Any:  # noqa: ANN401 (whatever a column holds)
    """Make of a cell what the decoder takes."""
    if isinstance(cell, dict) and "bytes" in cell:
        if cell["bytes"] is None and cell.get("path"):
            raise UserError(
                f"{what}: must hold an image, got the path {cell['path']} alone. Put the images in the table."
            )
        return cell["bytes"]
    if isinstance(cell, list):
        try:
            array = np.array(cell)
        except ValueError as error:
            raise UserError(f"{what}: must hold an image, got rows of several lengths.") from error
        array = array.astype(np.float64) if array.dtype.kind == "f" else array
        return as_bytes(as_rows(array[None], what), Reading(flag=reading.flag), what)[0]
    return cell


def _labels(table: Table, name: str) -> NDArray[Any]:
    """Read whole numbers or text."""
    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise UserError(f"{table.path}: row {row}: must have a label in the column {name}, got none.")
    kind = column.type
    if pa.types.is_integer(kind):
        values = column.to_numpy()
        if len(values) and int(values.max()) >= 2**63:
            raise UserError(f"{table.path}: row {int(values.argmax())}: label must be a class, got {values.max()}.")
        return np.asarray(values, dtype=np.int64)
    if pa.types.is_boolean(kind):
        return np.array(column.to_pylist(), dtype=np.int64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=np.str_)
    raise UserError(
        f"{table.path}: the column {name} must hold whole numbers or text, got {kind}. Name another one by --columns."
    )

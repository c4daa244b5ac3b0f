"""Data sets that ``save_to_disk`` of Hugging Face's ``datasets`` wrote: Arrow files and what describes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steadynorm.lab.data.parts import Parts, Reading
from steadynorm.reporting.failure import UserError, one_line

if TYPE_CHECKING:
    from steadynorm.lab.data.tables import Table

__all__ = ["read", "recognises"]

STATE, DICT = "state.json", "dataset_dict.json"


def recognises(data: str) -> bool:
    """Whether it is a directory that ``save_to_disk`` wrote."""
    return any((Path(data) / name).is_file() for name in (STATE, DICT))


def read(data: str, reading: Reading) -> Parts:
    """Map the files into memory.

    Raises:
        UserError: one is missing or broken.
    """
    from steadynorm.lab.data.tables import parts_of_tables

    place = Path(data)
    if (place / DICT).is_file():
        splits = _json(place / DICT, "splits")
        folders = {str(split): place / str(split) for split in splits}
    else:
        folders = {"all": place}
    tables = {word: [_open(path) for path in _files(folder)] for word, folder in folders.items()}
    if not any(tables.values()):
        raise UserError(f"{reading.flag}: {place}: must hold images, got none.")
    return parts_of_tables(place.resolve().name, {word: each for word, each in tables.items() if each}, reading)


def _files(folder: Path) -> list[Path]:
    state = folder / STATE
    if _json(state, "_indices_data_files", default=None):
        raise UserError(f"{state}: must have its rows in order, got indices. Save it by a newer version of datasets.")
    return [folder / str(each["filename"]) for each in _json(state, "_data_files")]


def _json(path: Path, key: str, **default: Any) -> Any:  # noqa: ANN401 (JSON)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found.get(key, default["default"]) if default else found[key]
    except FileNotFoundError as error:
        raise UserError(f"{path}: must be there, got no such file. Save the data set again.") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: must be written by save_to_disk, got {one_line(error)}.") from error


def _open(path: Path) -> Table:
    """Map an Arrow file, which is a stream of batches."""
    import pyarrow as pa

    from steadynorm.lab.data.tables import Table

    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
            table = stream.read_all()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: must be a complete Arrow file, got {one_line(error)}. Save it again.") from error

    def cells(name: str, rows: NDArray[np.int64]) -> Iterator[Any]:
        column = table.column(name)
        return (column[row].as_py() for row in rows.tolist())

    return Table(path=path, schema=table.schema, count=table.num_rows, column=table.column, cells=cells)

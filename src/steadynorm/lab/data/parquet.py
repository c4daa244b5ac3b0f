"""Parquet files of any number and names, in the layout of the Hugging Face hub or a similar one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steadynorm.lab.data.class_folders import TRAIN, VALIDATION, visible
from steadynorm.lab.data.parts import Parts, Reading
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.reporting.words import listing

if TYPE_CHECKING:
    from steadynorm.lab.data.tables import Table

__all__ = ["check_one_set", "open_table", "parts_of_files", "read", "recognises"]

_ROWS = 500
DEPTH = 3
"""Depth to which folders are searched."""


def recognises(data: str) -> bool:
    """Whether this is a Parquet file, or a directory with some."""
    return bool(_files(Path(data)))


def read(data: str, reading: Reading) -> Parts:
    """Read the heads of the files.

    Raises:
        UserError: a file cannot be read, or they are of several data sets.
    """
    return parts_of_files(Path(data).resolve().stem, _files(Path(data)), reading)


def parts_of_files(name: str, files: Mapping[str, Path], reading: Reading) -> Parts:
    """Make a data set from Parquet files.

    Args:
        name: name of the data set.
        files: files by their path in the data set, which names their part.
        reading: settings.

    Raises:
        UserError: a file cannot be read, or they are of several data sets.
    """
    from steadynorm.lab.data.tables import parts_of_tables

    check_one_set(files, what=name, flag=reading.flag)
    words = {within: _part_of(within) for within in files}
    found_words = {word for word in words.values() if word is not None}
    if found_words and (others := [within for within, word in words.items() if word is None]):
        reading.progress(
            f"{name}: {listing(others[:3])} {'is' if len(others) == 1 else 'are'} of no usual part; not used"
        )
    tables: dict[str, list[Table]] = {}
    for within, word in words.items():
        if word is not None or not found_words:
            tables.setdefault(word or "all", []).append(open_table(files[within]))
    return parts_of_tables(name, dict(tables), reading)


def check_one_set(names: Iterable[str], *, what: str, flag: str) -> None:
    """Refuse files of several data sets, recognized by their folders.

    Raises:
        UserError: the files belong to several data sets.
    """
    stems = sorted({_stem(name) for name in names})
    if len(stems) > 1:
        found = listing([f"{stem or '.'}/" for stem in stems[:5]])
        raise UserError(f"{flag}: {what}: must be one data set, got Parquet files in {found}. Give one of the folders.")


def _files(place: Path) -> dict[str, Path]:
    if place.suffix.lower() == ".parquet" and place.is_file():
        return {place.name: place}
    if not place.is_dir():
        return {}
    found = [path for depth in range(DEPTH) for path in place.glob(f"{'*/' * depth}*.parquet")]
    within = {path.relative_to(place): path for path in sorted(found) if path.is_file()}
    return {each.as_posix(): path for each, path in within.items() if all(map(visible, each.parts))}


def _words(text: str) -> list[str]:
    return [word for word in re.split("[^a-z]+", text.lower()) if word in (*TRAIN, *VALIDATION)]


def _part_of(within: str) -> str | None:
    """Return the part that the file name tells, or else its folders, the nearest first."""
    return next((words[0] for each in reversed(within.split("/")) if (words := _words(each))), None)


def _stem(within: str) -> str:
    """Return the folders that name a file's data set, without those that name its part."""
    return "/".join(each for each in within.split("/")[:-1] if not _words(each))


def open_table(path: Path) -> Table:
    """Read the head of a Parquet file.

    Raises:
        UserError: it is not a complete Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from steadynorm.lab.data.tables import Table

    broken = (pa.ArrowException, UnicodeError, OSError)  # also if names are not UTF-8

    def refused(error: Exception) -> UserError:
        return UserError(f"{path}: must be a complete Parquet file, got {one_line(error)}. Download it again.")

    def column(name: str) -> Any:  # noqa: ANN401 - pyarrow has no type annotations
        try:
            with pq.ParquetFile(path) as file:
                return file.read(columns=[name]).column(0)
        except broken as error:
            raise refused(error) from error

    def cells(name: str, rows: NDArray[np.int64]) -> Iterator[Any]:
        try:
            with pq.ParquetFile(path) as file:
                yield from _cells(file, name, rows)
        except broken as error:
            raise refused(error) from error

    try:
        with pq.ParquetFile(path) as file:
            return Table(path=path, schema=file.schema_arrow, count=file.metadata.num_rows, column=column, cells=cells)
    except broken as error:
        raise refused(error) from error


def _cells(file: Any, name: str, rows: NDArray[np.int64]) -> Iterator[Any]:  # noqa: ANN401
    """Read the row groups that hold the given rows."""
    start = 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if not len(within := rows[(rows >= start) & (rows < start + count)] - start):
            start += count
            continue
        before = 0
        for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[name]):
            chosen = within[(within >= before) & (within < before + len(batch))] - before
            if len(chosen):
                yield from batch.column(0).take(chosen).to_pylist()
            before += len(batch)
        start += count

"""NumPy archives: an .npz file with the images and labels of one part or two."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from steadynorm.lab.data.arrays import as_bytes, as_labels, as_rows, part_of_arrays
from steadynorm.lab.data.class_folders import TRAIN, VALIDATION
from steadynorm.lab.data.parts import Part, Parts, Reading
from steadynorm.lab.data.storage import fits
from steadynorm.reporting.failure import UserError, one_line
from steadynorm.reporting.words import listing

__all__ = ["array_names", "choose", "load_arrays", "read", "recognises"]

NAMES = (("x", "y"), ("images", "labels"), ("image", "label"), ("data", "labels"), ("data", "target"))
"""Names of the arrays with images and with labels, in lower case."""
DAMAGE = (ValueError, KeyError, OSError, zipfile.BadZipFile, EOFError, zlib.error)
"""Errors that reading a broken archive raises."""


def recognises(data: str) -> bool:
    """Whether the name is that of an archive."""
    return Path(data).suffix.lower() == ".npz"


def read(data: str, reading: Reading) -> Parts:
    """Load the arrays.

    Raises:
        UserError: the file cannot be read, or has no images and labels.
    """
    path = Path(data)
    train, validation = _chosen(path, reading)
    parts = [_part(path, *pair, reading) for pair in (train, validation) if pair is not None]
    return Parts(name=path.stem, train=parts[0], validation=parts[1] if validation else None)


def _part(path: Path, images: str, labels: str, reading: Reading) -> Part:
    """Load images and labels; images that do not fit into memory are read one by one."""
    what = f"{path}: {images}"
    shape, dtype, is_by_column = _head(path, images, reading.flag)
    if fits((*shape, dtype.itemsize)):
        arrays = load_arrays(path, {images, labels}, flag=reading.flag)
        return part_of_arrays(arrays[images], arrays[labels], reading, what=what)
    if is_by_column:
        raise UserError(f"{what}: must be stored row by row (in C order) where it does not fit into memory.")
    if dtype.kind == "f":
        reading.progress(f"{what}: {dtype} in [0, 1], rounded to bytes of 256 shades")
    return Part(
        count=shape[0],
        labels=as_labels(load_arrays(path, {labels}, flag=reading.flag)[labels], shape[0], what),
        images=lambda rows: _streamed(path, images, rows, reading.flag),
        called=lambda row: f"{what}: row {row}",
        sources=(path,),
    )


def _head(path: Path, name: str, flag: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Read the shape of an array, its type, and whether it is stored column by column."""
    try:
        with zipfile.ZipFile(path) as file, file.open(f"{name}.npy") as member:
            return _read_head(member)
    except DAMAGE as error:
        raise UserError(f"{flag}: {path}: is not an .npz file of plain arrays ({one_line(error)}).") from error


def _read_head(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_by_column, dtype = read(member)
    if dtype.hasobject or not shape:
        raise ValueError(f"{dtype} of shape {shape}")
    return shape, dtype, is_by_column


def _streamed(path: Path, name: str, rows: NDArray[np.int64], flag: str) -> Iterator[NDArray[np.uint8]]:
    """Read images one by one, and return those of some rows."""
    wanted = set(rows.tolist())
    try:
        with zipfile.ZipFile(path) as file, file.open(f"{name}.npy") as member:
            shape, dtype, _ = _read_head(member)
            size = dtype.itemsize * math.prod(shape[1:])
            for row in range(int(rows[-1]) + 1):
                content = member.read(size)
                if row in wanted:
                    what = f"{path}: {name}: row {row}"
                    image = np.frombuffer(content, dtype).reshape(1, *shape[1:])
                    yield as_bytes(as_rows(image, what), Reading(flag=flag), what)[0]
    except DAMAGE as error:
        raise UserError(f"{flag}: {path}: is not a complete .npz file ({one_line(error)}).") from error


def _chosen(path: Path, reading: Reading) -> tuple[tuple[str, str], tuple[str, str] | None]:
    """Choose the arrays for training, and those for validation if there are any."""
    names = array_names(path, flag=reading.flag)
    wanted = NAMES if reading.columns is None else (reading.columns,)
    if found := choose(names, wanted):
        return found
    pairs = " or ".join(f"{one} and {other}" for one, other in wanted[:2])
    raise UserError(
        f"{reading.flag}: {path}: must have arrays {pairs}, alone or with _train and _test, got {listing(names)}. "
        "Give the names of the images and of the labels by --columns."
    )


def choose(
    names: Sequence[str], wanted: Sequence[tuple[str, str]] = NAMES
) -> tuple[tuple[str, str], tuple[str, str] | None] | None:
    """Choose the arrays for training, and those for validation, by the first names that are there; None for none."""
    for pair in wanted:
        if train := _of_part(pair, TRAIN, names) or _of_part(pair, ("",), names):
            return train, _of_part(pair, VALIDATION, names)
    return None


def _of_part(pair: tuple[str, str], parts: Sequence[str], names: Sequence[str]) -> tuple[str, str] | None:
    by_name = {name.lower(): name for name in names} | {name: name for name in names}
    for part in parts:
        for form in ("{0}_{1}", "{1}_{0}") if part else ("{0}",):
            found = [
                by_name.get(form.format(name, part)) or by_name.get(form.format(name, part).lower()) for name in pair
            ]
            if found[0] is not None and found[1] is not None:
                return found[0], found[1]
    return None


def array_names(path: Path, *, flag: str) -> list[str]:
    """Return the names of an archive's arrays.

    Raises:
        UserError: the file does not exist, or is not an archive.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return [name.removesuffix(".npy") for name in file.namelist()]
    except FileNotFoundError as error:
        raise UserError(f"{flag}: {path}: there is no such file.") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{flag}: {path}: is not an .npz file.") from error


def load_arrays(path: Path, wanted: set[str] | None = None, *, flag: str) -> Mapping[str, NDArray[Any]]:
    """Load arrays of an archive by name; none is unpickled.

    Args:
        path: path of the archive.
        wanted: names of the arrays; missing ones are left out. None loads all.
        flag: the flag that gave the path, for messages.

    Raises:
        UserError: the file does not exist, or is not an archive of plain arrays.
    """
    array_names(path, flag=flag)
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file if wanted is None or name in wanted}
    except DAMAGE as error:
        raise UserError(f"{flag}: {path}: is not an .npz file of plain arrays ({one_line(error)}).") from error

"""CIFAR-10 and CIFAR-100 as their author published them: pickles of a dict each, in a folder or in its archive."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steadynorm.lab.data.parts import Part, Parts, Reading
from steadynorm.lab.data.pickled import read_pickled
from steadynorm.reporting.failure import UserError, one_line

__all__ = ["read", "recognises"]

SIDE = 32
BYTES = 3 * SIDE * SIDE
LARGEST = 2**28
"""Bytes of a file in an archive, at most: nearly twice CIFAR-100's training images."""
ARCHIVES = (".tar.gz", ".tgz", ".tar")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of the two data sets."""

    name: str
    folder: str
    train: tuple[str, ...]
    """Its files with training images."""
    test: tuple[str, ...]
    meta: str
    """Its file with the names of the classes."""
    labels: tuple[str, ...]
    """Fields with labels, the usual one first."""
    names: Mapping[str, str]
    """Field with labels -> field with their names."""


CIFAR10 = Kind(
    name="cifar10",
    folder="cifar-10-batches-py",
    train=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test=("test_batch",),
    meta="batches.meta",
    labels=("labels",),
    names={"labels": "label_names"},
)
CIFAR100 = Kind(
    name="cifar100",
    folder="cifar-100-python",
    train=("train",),
    test=("test",),
    meta="meta",
    labels=("fine_labels", "coarse_labels"),
    names={"fine_labels": "fine_label_names", "coarse_labels": "coarse_label_names"},
)


def recognises(data: str) -> bool:
    """Whether it is a folder with such files, a folder with that one in it, or an archive."""
    return data.lower().endswith(ARCHIVES) or _found(Path(data)) is not None


def read(data: str, reading: Reading) -> Parts:
    """Read all files, without running what a pickle may ask for.

    Raises:
        UserError: a file is absent, unreadable or of another kind, or asks to run code.
    """
    if not data.lower().endswith(ARCHIVES):
        found = _found(Path(data))
        assert found is not None
        kind, folder = found
        files = {name: _content(folder / name) for name in (*kind.train, *kind.test)}
        files |= {kind.meta: (folder / kind.meta).read_bytes()} if (folder / kind.meta).is_file() else {}
        return _parts(kind, files, folder, reading)
    return _parts(*_unpacked(Path(data), reading), reading)


def _found(place: Path) -> tuple[Kind, Path] | None:
    for kind in (CIFAR10, CIFAR100):
        for folder in (place, place / kind.folder):
            if any((folder / name).is_file() for name in (*kind.train, *kind.test)):
                return kind, folder
    return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: must be readable, got {error.strerror or error}. Complete the folder, or download it again."
        ) from error


def _unpacked(path: Path, reading: Reading) -> tuple[Kind, dict[str, bytes], Path]:
    """Read the files of an archive into memory."""
    kinds = {kind.folder: kind for kind in (CIFAR10, CIFAR100)}
    files, seen = dict[str, dict[str, bytes]](), list[str]()
    reading.progress(f"reading {path}")
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                seen.append(member.name)
                kind = kinds.get(folder)
                if kind is None or name not in (*kind.train, *kind.test, kind.meta) or not member.isfile():
                    continue
                if member.size > LARGEST:
                    raise UserError(f"{path}: {member.name}: must be at most {LARGEST:,} bytes, got {member.size:,}.")
                content = archive.extractfile(member)
                files.setdefault(folder, {})[name] = b"" if content is None else content.read()
    except FileNotFoundError as error:
        raise UserError(f"{reading.flag}: {path}: there is no such file.") from error
    except (tarfile.TarError, OSError, EOFError) as error:  # zlib's error becomes a ReadError
        raise UserError(f"{path}: must be a complete archive, got {one_line(error)}. Download it again.") from error
    if len(files) != 1:
        raise UserError(
            f"{reading.flag}: {path}: must hold {' or '.join(kinds)} as published, got "
            f"{', '.join(seen[:3]) or 'nothing'}. Unpack it, and give the folder."
        )
    ((folder, found),) = files.items()
    return kinds[folder], found, path / folder


def _parts(kind: Kind, files: Mapping[str, bytes], place: Path, reading: Reading) -> Parts:
    label = kind.labels[0] if reading.columns is None else reading.columns[1]
    if label not in kind.labels or (reading.columns is not None and reading.columns[0] != "data"):
        raise UserError(f"--columns: must be data and {' or '.join(kind.labels)} with {kind.folder}.")
    if len(kind.labels) > 1 and reading.columns is None:
        reading.progress(f"labels are {label}; for the others give --columns data {kind.labels[1]}")
    for name in (*kind.train, *kind.test):
        if name not in files:
            raise UserError(f"{place}: must hold {name}, got no such file. Download it again.")
    train, test = (_part({name: files[name] for name in names}, place, label) for names in (kind.train, kind.test))
    classes = _class_names(files, kind, label, place)
    return Parts(name=kind.name, train=train, validation=test, classes=classes)


def _part(files: Mapping[str, bytes], place: Path, label: str) -> Part:
    read = [_read_batch(content, place / name, label) for name, content in files.items()]
    planes = np.concatenate([data for data, _ in read]).reshape(-1, 3, SIDE, SIDE)
    rows = np.ascontiguousarray(np.moveaxis(planes, 1, 3))
    starts = np.cumsum([0, *(len(data) for data, _ in read)])

    def called(row: int) -> str:
        batch = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{place / list(files)[batch]}: row {row - starts[batch]}"

    return Part(
        count=len(rows),
        labels=np.concatenate([labels for _, labels in read]),
        images=lambda chosen: (rows[row] for row in chosen.tolist()),
        called=called,
        pixels=rows,
    )


def _read_batch(content: bytes, path: Path, label: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    fields = _fields(content, path)
    data, labels = fields.get("data"), fields.get(label)
    if not (isinstance(data, np.ndarray) and data.ndim == 2 and data.shape[1] == BYTES and isinstance(labels, list)):
        raise UserError(
            f"{path}: must hold data of shape (rows, {BYTES}) and a list of {label}, got "
            f"{', '.join(fields) or 'neither'}. Download it again."
        )
    if len(labels) != len(data) or not all(type(each) is int and abs(each) < 2**62 for each in labels):
        raise UserError(
            f"{path}: must hold a label, a whole number, for each of its {len(data)} images, got others. "
            "Download it again."
        )
    return data, np.array(labels, dtype=np.int64)


def _fields(content: bytes, path: Path) -> dict[str, object]:
    try:
        found = read_pickled(content)
    except ValueError as error:
        raise UserError(f"{path}: must be a batch of CIFAR, but {error}. Download it again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: must be a batch of CIFAR, got a {type(found).__name__}. Download it again.")
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}


def _class_names(files: Mapping[str, bytes], kind: Kind, label: str, place: Path) -> tuple[str, ...] | None:
    if kind.meta not in files:
        return None
    names = _fields(files[kind.meta], place / kind.meta).get(kind.names[label])
    return tuple(_text(each) for each in names) if isinstance(names, Sequence) and names else None


def _text(name: object) -> str:
    return name.decode("latin-1") if isinstance(name, bytes) else str(name)

"""A run directory while an experiment writes into it: the lock, the states, the trained networks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steadynorm.reporting.failure import UserError
from steadynorm.reporting.files import meant_name, write_bytes
from steadynorm.reporting.place import check_inside, check_own_file, file_in
from steadynorm.reporting.records import Cell, Record, write_cells, write_config

__all__ = ["BEGUN", "RunDirectory", "save_tensors"]

LOCK = ".lock"
BEGUN = (LOCK, "config.json", "cells.json", "measurements.csv")
"""What a directory may hold in which an experiment was about to begin."""
WRITTEN = {"": BEGUN, "state": None, "checkpoints": None}
"""Folder -> the files in it that only the holder of the lock writes; None are all."""


class RunDirectory:
    """Where one experiment keeps its files.

    ``state/<cell>.safetensors`` is the truth about a cell: in its metadata the cell so far, and tensors to go on from.
    It is replaced as a whole, so that a kill leaves the last state. The tables are rewritten from the cells.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing here; the lock ends with the process, however it ends.

        Raises:
            UserError: another process holds it, or the directory has links through which files elsewhere would be
                written.
        """
        from filelock import FileLock, Timeout  # warns where it is imported, if the system has no locks of files

        self.path.mkdir(parents=True, exist_ok=True)
        check_own_file(self.path / LOCK)
        try:
            lock = FileLock(self.path / LOCK, timeout=0).acquire()
        except Timeout:
            raise UserError(
                f"{self.path}: another process is writing into this run directory. "
                "Wait for it to end, or give another --out."
            ) from None
        with lock:
            check_inside(self.path)
            self._remove_unfinished()
            yield

    def _remove_unfinished(self) -> None:
        """Remove what a killed process had not written to its end: only the holder of the lock writes these files."""
        for folder, names in WRITTEN.items():
            for path in (self.path / folder).glob(".*.part"):
                meant = meant_name(path.name)
                if meant is not None and path.is_file() and (names is None or meant in names):
                    path.unlink()

    def begin(self, record: Record) -> None:
        """Write the head of a record and empty tables.

        Raises:
            UserError: an experiment has begun here already.
        """
        if (self.path / "config.json").exists():
            raise UserError(
                f"{self.path}: holds an experiment already. Continue it with --resume, or give another --out."
            )
        write_cells(self.path, ())
        write_config(self.path, record)

    def write_cells(self, cells: Iterable[Cell]) -> None:
        """Rewrite the tables."""
        write_cells(self.path, cells)

    def checkpoint_path(self, cell: Cell) -> Path:
        """Where the trained model of a cell goes."""
        return file_in(self.path / "checkpoints", f"{cell.name}.safetensors")

    def tensorboard_path(self, cell: Cell) -> Path:
        """Where the TensorBoard events of a cell go."""
        return file_in(self.path / "tensorboard", cell.name)

    def save_checkpoint(self, cell: Cell, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Write the trained model of a cell."""
        save_tensors(self.checkpoint_path(cell), tensors, metadata)

    def save_state(self, cell: Cell, tensors: Mapping[str, Tensor]) -> None:
        """Replace the state of a cell as a whole."""
        save_tensors(self._state_path(cell), tensors, {"cell": json.dumps(dataclasses.asdict(cell))})

    def load_state(self, cell: Cell) -> Cell:
        """Read how far a cell is; one without a state is waiting.

        Raises:
            UserError: the state is damaged or belongs to another cell.
        """
        path = self._state_path(cell)
        if not path.exists():
            return dataclasses.replace(cell, status="waiting", measurements=(), seconds=None)
        try:
            with safe_open(path, framework="pt") as state:
                found = msgspec.convert(json.loads(state.metadata()["cell"]), Cell)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise damaged_state(path, error) from error
        if found.factors != cell.factors:
            raise UserError(f"{path}: holds {found.factors}, not {cell.factors}. Remove it to begin this cell again.")
        return found

    def load_tensors(self, cell: Cell) -> dict[str, Tensor]:
        """Read the tensors that :meth:`save_state` wrote.

        Raises:
            UserError: the state is damaged.
        """
        path = self._state_path(cell)
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise damaged_state(path, error) from error

    def _state_path(self, cell: Cell) -> Path:
        return file_in(self.path / "state", f"{cell.name}.safetensors")


def damaged_state(path: Path, error: object) -> UserError:
    """Make the error for a state that cannot be gone on from."""
    return UserError(f"{path}: the state is damaged ({error}). Remove it to begin this cell again.")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; equal tensors and metadata give equal bytes."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, _with_sorted_metadata(safetensors.torch.save(content, dict(metadata))))


def _with_sorted_metadata(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, which safetensors writes in an order that differs from call to call.

    A file is the length of its header as 8 bytes, the header as JSON, filled up with spaces to a multiple of 8 bytes,
    and the tensors.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]

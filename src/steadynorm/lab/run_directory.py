"""A run directory while an experiment writes into it: the lock, the states, the checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from steadynorm.lab.checkpoint import Checkpoint, load_checkpoint
from steadynorm.lab.workers import by_first, is_first, on_first
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.files import meant_name, write_bytes, write_text
from steadynorm.reporting.place import check_inside, check_own_file, file_in
from steadynorm.reporting.records import (
    CellRecord,
    Epoch,
    LayerGradient,
    Measurement,
    Record,
    RunRecord,
    RunSpec,
    Status,
    write_cells,
    write_config,
    write_tables,
)

__all__ = ["BEGUN", "RunDirectory"]

LOCK = ".lock"
BEGUN = (LOCK, "config.json", "runs.json", "metrics.csv", "gradient_norms.csv")
"""What a directory may hold in which an experiment was about to begin."""
WRITTEN = {"": (*BEGUN, "cells.json", "measurements.csv"), "state": None, "checkpoints": None}
"""Folder -> the files in it that only the holder of the lock writes; None are all."""


class RunDirectory:
    """Where one experiment keeps its files.

    ``state/<run>.safetensors`` is the truth about a run: tensors to continue from and, in its metadata, the
    record so far. It is replaced as a whole after each epoch, so that a kill leaves the last finished epoch.
    ``state/<cell>.json`` is likewise the truth about a measured cell. The tables are rewritten from these records.

    Under torchrun every worker calls each method, and the first one alone reads and writes: only it needs the disk.
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
        with contextlib.ExitStack() as stack:
            on_first(lambda: self._take_lock(stack))
            yield

    def _take_lock(self, stack: contextlib.ExitStack) -> None:
        from filelock import FileLock, Timeout  # warns where it is imported, if the system has no locks of files

        self.path.mkdir(parents=True, exist_ok=True)
        check_own_file(self.path / LOCK)
        try:
            stack.enter_context(FileLock(self.path / LOCK, timeout=0))
        except Timeout:
            raise UserError(
                f"{self.path}: another process is writing into this run directory. "
                "Wait for it to end, or give another --out."
            ) from None
        check_inside(self.path)
        self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        """Remove what a killed process had not written to its end: nobody writes these files but who holds the lock."""
        for folder, names in WRITTEN.items():
            for path in (self.path / folder).glob(".*.part"):
                meant = meant_name(path.name)
                if meant is not None and path.is_file() and (names is None or meant in names):
                    path.unlink()

    @by_first
    def begin(self, record: Record) -> None:
        """Write the configuration and empty tables.

        Raises:
            UserError: an experiment has begun here already.
        """
        if (self.path / "config.json").exists():
            raise UserError(
                f"{self.path}: holds an experiment already. Continue it with --resume, or give another --out."
            )
        write_tables(self.path, ())
        write_config(self.path, record)

    def checkpoint_path(self, spec: RunSpec) -> Path:
        """Where the trained model of a run goes."""
        return file_in(self.path / "checkpoints", f"{spec.name}.safetensors")

    def tensorboard_path(self, spec: RunSpec) -> Path:
        """Where the TensorBoard events of a run go."""
        return file_in(self.path / "tensorboard", spec.name)

    def open_board(self, record: RunRecord) -> contextlib.AbstractContextManager[SummaryWriter | None]:
        """Open the TensorBoard events of a run behind its finished epochs; the first worker alone writes them."""
        if not is_first():
            return contextlib.nullcontext()
        path = str(self.tensorboard_path(record.spec))
        writer: contextlib.AbstractContextManager[SummaryWriter] = SummaryWriter(
            path, purge_step=len(record.epochs) + 1
        )
        return writer

    @by_first
    def write_runs(self, records: Sequence[RunRecord]) -> None:
        """Rewrite the tables of networks."""
        write_tables(self.path, tuple(records))

    @by_first
    def write_cells(self, cells: Sequence[CellRecord]) -> None:
        """Rewrite the tables of cells."""
        write_cells(self.path, tuple(cells))

    @by_first
    def save_checkpoint(self, spec: RunSpec, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Write the trained model of a run."""
        save_tensors(self.checkpoint_path(spec), tensors, metadata)

    @by_first
    def save_state(self, record: RunRecord, tensors: dict[str, Tensor]) -> None:
        """Replace the state of a run as a whole."""
        save_tensors(self._state_path(record.spec), tensors, {"record": json.dumps(dataclasses.asdict(record))})

    def load_checkpoint(self, spec: RunSpec) -> Checkpoint:
        """Read the trained model of a run, as :func:`steadynorm.lab.checkpoint.load_checkpoint` does."""
        return load_checkpoint(self.checkpoint_path(spec))

    @by_first
    def load_record(self, spec: RunSpec) -> RunRecord:
        """Read how far a run has come; a run without a state is waiting.

        Raises:
            UserError: the state is damaged or belongs to other settings.
        """
        path = self._state_path(spec)
        if not path.exists():
            return RunRecord(spec=spec)
        try:
            with safe_open(path, framework="pt") as state:
                record = _record_from_json(json.loads(state.metadata()["record"]))
            _check_course(record)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, error) from error
        if record.spec != spec:
            raise UserError(f"{path}: holds {record.spec}, not {spec}. Remove it to train this network anew.")
        return record

    @by_first
    def load_tensors(self, spec: RunSpec) -> dict[str, Tensor]:
        """Read the tensors that :meth:`save_state` wrote.

        Raises:
            UserError: the state is damaged.
        """
        path = self._state_path(spec)
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise self._damaged(path, error) from error

    @by_first
    def save_cell(self, cell: CellRecord) -> None:
        """Keep a measured cell."""
        write_text(self._cell_path(cell), json.dumps(dataclasses.asdict(cell), indent=1) + "\n")

    @by_first
    def load_cell(self, cell: CellRecord) -> CellRecord:
        """Read a cell that was measured before; any other comes back as it is.

        Raises:
            UserError: its file is damaged or belongs to another cell.
        """
        path = self._cell_path(cell)
        if not path.exists():
            return cell
        try:
            content = json.loads(path.read_text())
            rows = tuple(Measurement(**row) for row in content.pop("measurements"))
            known = CellRecord(**content, measurements=rows)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: is damaged ({error}). Remove it to measure this cell anew.") from error
        if known.factors != cell.factors:
            raise UserError(f"{path}: holds {known.factors}, not {cell.factors}. Remove it to measure this cell anew.")
        return known

    def _cell_path(self, cell: CellRecord) -> Path:
        return file_in(self.path / "state", f"{cell.name}.json")

    def _state_path(self, spec: RunSpec) -> Path:
        return file_in(self.path / "state", f"{spec.name}.safetensors")

    @staticmethod
    def _damaged(path: Path, error: Exception) -> UserError:
        return UserError(f"{path}: the state is damaged ({error}). Remove it to train this network anew.")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically; equal tensors and metadata give equal bytes."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, _with_sorted_metadata(safetensors.torch.save(content, metadata)))


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


def _record_from_json(content: dict[str, Any]) -> RunRecord:
    return RunRecord(
        spec=RunSpec(**content.pop("spec")),
        epochs=tuple(Epoch(**row) for row in content.pop("epochs")),
        layers=tuple(LayerGradient(**row) for row in content.pop("layers")),
        **content,
    )


def _check_course(record: RunRecord) -> None:
    """Refuse a record that no training writes.

    Raises:
        ValueError: its epochs are not counted from 1 to those of its status.
    """
    numbers, planned = [row.epoch for row in record.epochs], record.spec.epochs
    counted = numbers == list(range(1, len(numbers) + 1))
    ended = len(numbers) == planned if record.status == "finished" else len(numbers) < planned
    if not counted or not ended or record.status not in get_args(Status):
        raise ValueError(f"{record.status} with the epochs {numbers} of {planned}")

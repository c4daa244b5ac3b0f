"""What a run directory holds, as types, and how the tables are written and read back.

A run directory is the interface between training and reporting: a report is made from these files alone.

=====================  ======================================================================
``config.json``        what was asked for, with versions, machine and command (:class:`Record`)
``runs.json``          one entry per trained network: what it is and how it ended
``metrics.csv``        one row per network and finished epoch (:class:`Epoch`)
``gradient_norms.csv`` one row per network, finished epoch and weight (:class:`LayerGradient`)
``cells.json``         one entry per cell: what it is and whether it is measured; where there are cells
``measurements.csv``   one row per measured number of a cell (:class:`Measurement`)
=====================  ======================================================================

A network of ``runs.json`` is trained epoch by epoch and goes on behind its last one after a stop. A cell is measured
as a whole and begins anew: a network that is watched while it trains, a trained one under one kind of data.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from steadynorm.reporting.failure import UserError
from steadynorm.reporting.files import write_text

__all__ = [
    "CellRecord",
    "Epoch",
    "Factor",
    "LayerGradient",
    "Measurement",
    "Record",
    "RunRecord",
    "RunSpec",
    "Status",
    "read_config",
    "read_record",
    "write_cells",
    "write_config",
    "write_tables",
]

Status = Literal["waiting", "running", "finished", "diverged"]
Purpose = Literal["compare", "tune", "stability"]
Factor = str | int | float
Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Which network is trained, apart from what all networks of the experiment share."""

    arm: str
    """Registered name of the normalization."""
    seed: int
    """Decides initial weights, order of the data and augmentation."""
    lr: float
    """Learning rate before any decay."""
    epochs: int
    """Number of epochs to train."""
    purpose: Purpose = "compare"
    """``tune`` marks a short run that only chooses a learning rate; it is judged on held-out training images.
    ``stability`` marks one that only shows whether a rate trains at all."""
    batch_size: int | None = None
    """Images that are normalized together, where it is not what all networks share."""
    depth: int | None = None
    """Convolutions of the cnn, likewise."""
    variant: str = ""
    """How it is trained, by a name of the experiment's, where that differs between its networks."""

    @property
    def name(self) -> str:
        """Unique within an experiment, and a legal file name."""
        prefix = "" if self.purpose == "compare" else f"{self.purpose}-"
        own = "".join(f"-{what}{value}" for what, value in (("batch", self.batch_size), ("depth", self.depth)) if value)
        prefix += f"{self.variant}-" if self.variant else ""
        return f"{prefix}{self.arm}-lr{self.lr!r}{own}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One finished epoch of one network."""

    epoch: int
    """Counted from 1."""
    learning_rate: float
    """In force during this epoch."""
    train_loss: float
    """Mean cross-entropy in nats over the epoch's training images, measured while they were trained on."""
    train_accuracy: float
    """Share in [0, 1], measured likewise."""
    val_loss: float
    """Mean cross-entropy in nats over the validation images, in evaluation mode, after the epoch."""
    val_accuracy: float
    """Share in [0, 1], measured likewise."""
    grad_norm_mean: float
    """Mean over the epoch's steps of the l2 norm of the gradient of all parameters."""
    grad_norm_p5: float
    """5th percentile over the steps."""
    grad_norm_p95: float
    """95th percentile over the steps."""
    images_per_second: float
    """Training images per second of training, validation left out."""
    seconds: float
    """Wall-clock time of the epoch, validation included."""


@dataclass(frozen=True, kw_only=True)
class LayerGradient:
    """The l2 norm of one weight's gradient over the steps of one epoch."""

    epoch: int
    layer: str
    """Qualified name of the convolution or linear layer, the same in every arm."""
    mean: float
    p5: float
    p95: float


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One trained network: what it is, how it ended, and its epochs."""

    spec: RunSpec
    status: Status = "waiting"
    diverged_at_step: int | None = None
    """Step, counted from 1 over the whole run, at which the loss was first not finite."""
    parameters: int = 0
    """Number of trainable parameters."""
    epochs: tuple[Epoch, ...] = ()
    layers: tuple[LayerGradient, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number of a cell; which quantities there are, the experiment's module says."""

    subject: str = ""
    """What was measured: a layer, a unit, a method; empty where it is the cell itself."""
    step: int = 0
    """Training step after which it was measured; 0 where there are no steps, or before the first."""
    quantity: str
    value: float


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """One cell of a grid and what was measured in it."""

    factors: dict[str, Factor]
    """What makes it this cell: arm, seed, learning rate, stream ..."""
    measurements: tuple[Measurement, ...] = ()
    seconds: float | None = None
    """Wall-clock time that it took; None while it is not measured."""

    @property
    def name(self) -> str:
        """Unique within an experiment, and a legal file name."""
        words = (value if isinstance(value, str) else f"{name}{value!r}" for name, value in self.factors.items())
        return "-".join(words)

    @property
    def is_measured(self) -> bool:
        """Whether it is finished."""
        return self.seconds is not None


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
    runs: tuple[RunRecord, ...] = ()
    cells: tuple[CellRecord, ...] = ()


def write_config(directory: Path, record: Record) -> None:
    """Write ``config.json``: the record without its runs and cells."""
    names = [field.name for field in dataclasses.fields(record) if field.name not in ("runs", "cells")]
    content = {name: getattr(record, name) for name in names}
    write_text(directory / "config.json", json.dumps(content, indent=2) + "\n")


def write_tables(directory: Path, runs: tuple[RunRecord, ...]) -> None:
    """Write ``runs.json``, ``metrics.csv`` and ``gradient_norms.csv``, each atomically."""
    heads = [
        dataclasses.asdict(run.spec)
        | {
            "name": run.spec.name,
            "status": run.status,
            "diverged_at_step": run.diverged_at_step,
            "parameters": run.parameters,
        }
        for run in runs
    ]
    write_text(directory / "runs.json", json.dumps(heads, indent=2) + "\n")
    write_text(directory / "metrics.csv", _table(Epoch, [(run.spec.name, row) for run in runs for row in run.epochs]))
    write_text(
        directory / "gradient_norms.csv",
        _table(LayerGradient, [(run.spec.name, row) for run in runs for row in run.layers]),
    )


def write_cells(directory: Path, cells: tuple[CellRecord, ...]) -> None:
    """Write ``cells.json`` and ``measurements.csv``, each atomically."""
    heads = [{"name": cell.name, "factors": cell.factors, "seconds": cell.seconds} for cell in cells]
    write_text(directory / "cells.json", json.dumps(heads, indent=2) + "\n")
    rows = [(cell.name, row) for cell in cells for row in cell.measurements]
    write_text(directory / "measurements.csv", _table(Measurement, rows, head="cell"))


def read_record(directory: Path) -> Record:
    """Read a run directory back.

    Raises:
        UserError: the directory is no run directory, or one of its files is damaged.
    """
    head = read_config(directory)
    with _explained(directory):
        heads = json.loads((directory / "runs.json").read_text())
        metrics = _read_table(Epoch, directory / "metrics.csv")
        layers = _read_table(LayerGradient, directory / "gradient_norms.csv")
        runs = tuple(_read_run(one, metrics, layers) for one in heads)
        return dataclasses.replace(head, runs=runs, cells=_read_cells(directory))


def read_config(directory: Path) -> Record:
    """Read ``config.json`` alone: the record without its runs and cells.

    Raises:
        UserError: it is absent or damaged.
    """
    with _explained(directory):
        return Record(**json.loads((directory / "config.json").read_text()))


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    """Say in one line what is wrong with a file of a run directory."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"{directory}: not a run directory, {Path(error.filename).name} is missing. "
            "Give the directory that a command printed as its report's place."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory}: a record is damaged ({error}). Restore it, or run the experiment again."
        ) from error


def _read_run(
    head: dict[str, Any], metrics: list[tuple[str, Epoch]], layers: list[tuple[str, LayerGradient]]
) -> RunRecord:
    name = head.pop("name")
    known = [field.name for field in dataclasses.fields(RunSpec) if field.name in head]  # early records lack some
    spec = RunSpec(**{name: head.pop(name) for name in known})
    return RunRecord(
        spec=spec,
        epochs=tuple(row for run, row in metrics if run == name),
        layers=tuple(row for run, row in layers if run == name),
        **head,
    )


def _read_cells(directory: Path) -> tuple[CellRecord, ...]:
    if not (directory / "cells.json").exists():  # an experiment without cells
        return ()
    measured: dict[str, list[Measurement]] = {}
    for name, row in _read_table(Measurement, directory / "measurements.csv", head="cell"):
        measured.setdefault(name, []).append(row)
    cells = [
        CellRecord(factors=head["factors"], seconds=head["seconds"], measurements=tuple(measured.pop(head["name"], ())))
        for head in json.loads((directory / "cells.json").read_text())
    ]
    if measured:
        raise ValueError(f"measurements.csv: cells.json has no {', '.join(measured)}")
    return tuple(cells)


def _table(row_type: type[Any], rows: list[tuple[str, Any]], *, head: str = "run") -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([head, *(field.name for field in dataclasses.fields(row_type))])
    for run, row in rows:
        writer.writerow([run, *dataclasses.astuple(row)])
    return out.getvalue()


def _read_table(row_type: type[Row], path: Path, *, head: str = "run") -> list[tuple[str, Row]]:
    types = get_type_hints(row_type)
    with path.open(newline="") as lines:
        return [
            (line.pop(head), row_type(**{key: types[key](value) for key, value in line.items()}))
            for line in csv.DictReader(lines)
        ]

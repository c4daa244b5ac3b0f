"""What runs in Ray's processes: a network's training, its timing, a cell's measurement; and the desk between."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steadynorm.lab.checkpoint import Checkpoint, load_checkpoint
from steadynorm.lab.data import Dataset
from steadynorm.lab.run_directory import RunDirectory
from steadynorm.lab.training import Settings, images_per_second, train
from steadynorm.reporting.records import Measurement, RunRecord, RunSpec

__all__ = ["Desk", "Files", "measure_cell", "time_network", "train_network"]


class Desk:
    """Where tasks leave what the driver is to keep and to show, and find what was kept of them before."""

    def __init__(self) -> None:
        self._letters: list[tuple[Any, ...]] = []
        self._states: dict[str, tuple[RunRecord, dict[str, Tensor]]] = {}

    def keep(self, name: str, record: RunRecord, tensors: dict[str, Tensor]) -> None:
        """Keep the state of a run for a task that has to start again."""
        self._states[name] = record, tensors

    def state(self, name: str) -> tuple[RunRecord, dict[str, Tensor]]:
        """Give the last state of a run."""
        return self._states[name]

    def post(self, *letter: Any) -> None:  # noqa: ANN401 (what each kind of letter has)
        """Leave a letter."""
        if letter[0] == "state":
            self.keep(letter[1].spec.name, *letter[1:])
        self._letters.append(letter)

    def take(self) -> list[tuple[Any, ...]]:
        """Give all letters, in their order, and forget them."""
        letters, self._letters = self._letters, []
        return letters


class _AtDesk(RunDirectory):
    """The run directory of a task: it lies on the desk."""

    def __init__(self, desk: Any) -> None:  # noqa: ANN401 (Ray's handle of an actor)
        self._desk = desk

    def load_record(self, spec: RunSpec) -> RunRecord:
        """Give what the desk has of the run."""
        import ray

        record: RunRecord = ray.get(self._desk.state.remote(spec.name))[0]
        return record

    def load_tensors(self, spec: RunSpec) -> dict[str, Tensor]:
        """Give its tensors."""
        import ray

        tensors: dict[str, Tensor] = ray.get(self._desk.state.remote(spec.name))[1]
        return tensors

    def save_state(self, record: RunRecord, tensors: dict[str, Tensor]) -> None:
        """Send the state; it is there when this returns."""
        import ray

        ray.get(self._desk.post.remote("state", record, _on_cpu(tensors)))

    def save_checkpoint(self, spec: RunSpec, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Send the trained model."""
        import ray

        ray.get(self._desk.post.remote("checkpoint", spec, _on_cpu(tensors), metadata))

    def open_board(self, record: RunRecord) -> contextlib.AbstractContextManager[None]:
        """Write no events: the driver does."""
        return contextlib.nullcontext()


@dataclass(frozen=True)
class _Caller:
    """An observer that sends what it hears to the desk; nobody waits for it to arrive."""

    desk: Any

    def step(self, record: RunRecord, *, step: int, steps: int, loss: float | None) -> None:
        if loss is not None:
            self.desk.post.remote("step", record, step, steps, loss)

    def epoch(self, record: RunRecord) -> None:
        self.desk.post.remote("epoch", record)


class Files(RunDirectory):
    """The run directory of a cell's task: checkpoints, as they came with it."""

    def __init__(self, checkpoints: Mapping[str, bytes]) -> None:
        self._checkpoints = checkpoints

    def load_checkpoint(self, spec: RunSpec) -> Checkpoint:
        """Read a checkpoint from a file of this machine's own."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{spec.name}.safetensors"
            path.write_bytes(self._checkpoints[path.name])
            return load_checkpoint(path)


def train_network(spec: RunSpec, settings: Settings, dataset: Dataset, desk: Any, threads: int) -> RunRecord:  # noqa: ANN401 (Ray's handle)
    """Train a network whose states go to the desk, from the last that lies there."""
    torch.set_num_threads(threads)
    return train(spec, settings, dataset, directory=_AtDesk(desk), observer=_Caller(desk))


def time_network(spec: RunSpec, settings: Settings, dataset: Dataset, threads: int) -> float:
    """Say how many images per second it learns from, beside whatever else runs."""
    torch.set_num_threads(threads)
    return images_per_second(spec, settings, dataset)


_MADE: dict[int, Any] = {}
"""What measures cells in this process of Ray's, by the function that made it: it keeps what several cells need."""


def measure_cell(
    make: Callable[[Any], Callable[..., Iterable[Measurement]]],
    task: Any,  # noqa: ANN401 (an experiment's Task)
    factors: dict[str, Any],
    threads: int,
) -> tuple[tuple[Measurement, ...], float]:
    """Measure a cell; give its rows and the seconds that they took."""
    torch.set_num_threads(threads)
    key = hash((make.__module__, make.__qualname__, task.record.created, task.record.command))
    if key not in _MADE:
        _MADE.clear()
        _MADE[key] = make(task)
    start = time.perf_counter()
    return tuple(_MADE[key](factors, lambda _: None)), time.perf_counter() - start


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}

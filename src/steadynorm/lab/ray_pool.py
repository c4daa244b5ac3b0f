"""Cells as Ray tasks, on this machine or on a cluster.

Each cell is one task. Its states and progress reach the driver through a Ray queue, and only the driver writes the run
directory. A task whose worker dies is submitted again, with the last state that was written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steadynorm.lab.cells import CellFiles, Line, Measure, Model, State, measure
from steadynorm.reporting.environment import count_cores
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.progress import Display, silent_display
from steadynorm.reporting.records import Cell

__all__ = ["Pool", "open_pool"]

RETRIES = 3  # of a task whose worker dies
GAIN = 1.05  # least speedup for which one more runs at once
WAIT = 10.0  # seconds that a cluster's head has to answer
PAUSE = 0.2  # seconds between two reads of the queue


@contextlib.contextmanager
def open_pool(address: str | None, *, threads: int, display: Display) -> Iterator[Pool]:
    """Join a Ray cluster, or start one on this machine, for as long as the context lasts.

    Args:
        address: address of a cluster's head, as for ``ray.init``; None starts a cluster here.
        threads: threads of each task.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, or it went away.
    """
    if find_spec("ray") is None:
        raise UserError("--on ray: Ray is not installed. Run: pip install 'steadynorm[ray]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    own = {"address": "local", "num_cpus": count_cores(), "include_dashboard": False}
    if address is not None and address != "auto":
        _check_answers(address)
    display.message(f"joining Ray at {address}" if address else "starting Ray on this machine")
    try:
        ray.init(**({"address": address} if address else own), log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        what = f"--address: no Ray cluster answers at {address}" if address else "--on ray: Ray does not start here"
        raise UserError(f"{what} ({error}).") from error
    pool = Pool(threads=threads, display=display)
    try:
        _check_fits(threads)
        yield pool
    except ray.exceptions.RayTaskError:  # a task's own fault
        raise
    except ray.exceptions.RayError as error:
        what = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"--on ray: Ray is lost ({what}). What is finished is kept: continue with --resume.") from error
    finally:
        pool.close()
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse an address without a server; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=WAIT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"--address: no Ray cluster answers at {address} ({error}).") from error


def _check_fits(threads: int) -> None:
    """Refuse more threads than any machine of the cluster has cores; Ray would wait forever."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cores = max((int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]), default=0)
    if threads > cores:
        raise UserError(f"--threads: must be at most the {cores} cores of Ray's largest machine, got {threads}.")


@dataclass
class Pool:
    """Where tasks run."""

    threads: int
    """Threads of each task."""
    display: Display
    _at_once: int | None = field(default=None, init=False)
    _news: Any = field(default=None, init=False)

    def measure(
        self,
        waiting: Sequence[Cell],
        make: Callable[[Any], Measure],
        task: Any,  # noqa: ANN401 (an experiment's Task, which knows the pool)
        files: CellFiles,
        *,
        timed: bool,
    ) -> None:
        """Measure cells, as many at once as are fastest together, and save their results as they come.

        Args:
            waiting: those that have not ended.
            make: makes, from the task, what measures a cell.
            task: the experiment's.
            files: keeps states and cells.
            timed: whether ``make`` gives :class:`steadynorm.lab.training.Training`, whose speed says how many fit.

        Raises:
            UserError: a worker died too often.
        """
        import ray

        if not waiting:
            return
        away = replace(task, display=silent_display(), pool=None, cells={}, checkpoints=_checkpoints(task))
        shared = ray.put((uuid.uuid4(), make, away, (str(Path.cwd()), *filter(None, sys.path))))
        gpus = float(timed and task.record.resolved["device"] == "cuda")
        at_once = self._how_many(waiting[0], shared, gpus) if timed else self._at_once or self._slots()
        left, tries = list(waiting), dict.fromkeys((cell.name for cell in waiting), 0)
        running: dict[Any, Cell] = {}
        queue = self._queue()
        while left or running:
            while left and len(running) < at_once:
                cell = files.last_state(left.pop(0))
                given = (shared, cell, files.begin(cell), queue, self.threads)
                running[self._remote(_measure, gpus).remote(*given)] = cell
            ready, _ = ray.wait(list(running), timeout=PAUSE)
            for what, arguments in queue.get_nowait_batch(queue.size()):
                getattr(files, what)(*arguments)
            for reference in ready:
                cell = running.pop(reference)
                try:
                    files.end(ray.get(reference))
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, UserError | OSError):
                        raise error.cause from error
                    raise
                except ray.exceptions.RayError as error:
                    tries[cell.name] += 1
                    if tries[cell.name] > RETRIES:
                        died = f"its worker died {tries[cell.name]} times ({type(error).__name__})"
                        raise UserError(f"{cell.name}: {died}.") from error
                    left.insert(0, cell)

    def close(self) -> None:
        """Close the queue while Ray is connected: its handle could close an actor of a later connection."""
        import ray

        if self._news is not None:
            with contextlib.suppress(ray.exceptions.RayError):  # the connection to Ray may be lost
                self._news.shutdown(force=True)

    def _queue(self) -> Any:  # noqa: ANN401 (Ray's)
        """Return the queue of states and progress, shared by all cells because its process takes seconds to start.

        It runs on the driver's machine, which stays as long as the driver.
        """
        import ray
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self._news is None:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self._news = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        return self._news

    def _slots(self) -> int:
        """Count the tasks for which the cluster has cores."""
        return max(1, _amount("CPU") // self.threads)

    def _how_many(self, cell: Cell, shared: Any, gpus: float) -> int:  # noqa: ANN401 (Ray's reference)
        """Return how many networks to train at once: measured with one cell, while more at once add speed.

        With GPUs, as many as there are: each task has its own.
        """
        import ray

        if self._at_once is None and gpus:
            self._at_once = max(1, _amount("GPU"))
        if self._at_once is not None:
            return self._at_once
        speeds: dict[int, float] = {}
        best, slots = 1, self._slots()
        for number in sorted({*(2**power for power in range(slots.bit_length())), slots}):
            timed = self._remote(_time, gpus)
            speeds[number] = sum(ray.get([timed.remote(shared, cell, self.threads) for _ in range(number)]))
            if number > 1 and speeds[number] < GAIN * speeds[best]:
                break
            best = number
        found = ", ".join(f"{number}: {speed:,.0f}" for number, speed in speeds.items())
        each = f"{self.threads} thread{'' if self.threads == 1 else 's'} each"
        self.display.message(f"{best} at once, {each} (images/s of so many together: {found})")
        self._at_once = best
        return best

    def _remote(self, function: Callable[..., Any], gpus: float) -> Any:  # noqa: ANN401 (Ray has no type for it)
        import ray

        return ray.remote(function).options(max_retries=0, num_cpus=float(self.threads), num_gpus=gpus)


def _amount(resource: str) -> int:
    """Return the cluster's amount of a resource."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get(resource, 0))


def _checkpoints(task: Any) -> dict[str, bytes]:  # noqa: ANN401 (an experiment's)
    return {path.name: path.read_bytes() for path in (task.directory.path / "checkpoints").glob("*.safetensors")}


# Code that runs in Ray's processes.

_MADE: dict[uuid.UUID, Measure] = {}
"""Measures cells in this Ray process, and keeps what several cells share."""


@dataclass(frozen=True)
class _Sender:
    """Sends states and progress of a cell through the queue."""

    queue: Any

    def advance(self, cell: Cell, share: float, text: str) -> None:
        if text and cell.is_network:
            self.queue.put(("advance", (cell, share, text)))

    def show(self, cell: Cell, line: Line) -> None:
        self.queue.put(("show", (cell, line)))

    def keep_state(self, cell: Cell, state: State) -> None:
        self.queue.put(("keep_state", (cell, replace(state, tensors=_on_cpu(state.tensors)))))

    def keep_model(self, cell: Cell, model: Model) -> None:
        self.queue.put(("keep_model", (cell, replace(model, tensors=_on_cpu(model.tensors)))))


_Shared = tuple[uuid.UUID, Callable[[Any], Measure], Any, tuple[str, ...]]


def _made(shared: _Shared, threads: int) -> Any:  # noqa: ANN401 (Training)
    torch.set_num_threads(threads)
    key, make, task, places = shared
    # The user's code is where the driver has it, if anywhere; installed packages are those of this machine.
    new = [place for place in dict.fromkeys(places) if place not in sys.path]
    here = new[:1] if places[0] in new else []
    sys.path[:] = [*here, *sys.path, *new[len(here) :]]
    if key not in _MADE:
        _MADE.clear()
        _MADE[key] = make(task)
    return _MADE[key]


def _measure(shared: Any, cell: Cell, tensors: Mapping[str, Tensor], queue: Any, threads: int) -> Cell:  # noqa: ANN401
    return measure(cell, _made(shared, threads), tensors, _Sender(queue))


def _time(shared: Any, cell: Cell, threads: int) -> float:  # noqa: ANN401 (given by reference)
    speed: float = _made(shared, threads).images_per_second(cell)
    return speed


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}

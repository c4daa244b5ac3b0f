"""Networks and cells as tasks of Ray, on this machine or on a cluster.

Each network, and each cell, is one task. What a task has to keep or to tell goes to the desk, an actor beside the
driver, which passes it on: the driver alone writes the run directory. A task whose worker dies is started again by Ray
and goes on from the last state that lies on the desk.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from steadynorm.lab.data import Dataset
from steadynorm.lab.machine import count_cores
from steadynorm.lab.progress import Display
from steadynorm.lab.ray_tasks import Desk, Files, measure_cell, time_network, train_network
from steadynorm.lab.run_directory import RunDirectory
from steadynorm.lab.training import Observer, Settings, write_board
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import CellRecord, Measurement, RunRecord, RunSpec

__all__ = ["Pool", "open_pool"]

RETRIES = 3  # of a task whose worker dies
GAIN = 1.05  # what one more at once must bring to be worth it
WAIT = 10.0  # seconds for a cluster's head to answer
PAUSE = 0.2  # seconds between looks at the desk


@contextlib.contextmanager
def open_pool(address: str | None, *, threads: int, display: Display) -> Iterator[Pool]:
    """Join a Ray cluster, or start one on this machine, for as long as the context lasts.

    Args:
        address: of a cluster's head, as ``ray.init`` takes it; None starts one here, beside any other.
        threads: of each task.

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
    try:
        _check_fits(threads)
        yield Pool(threads=threads, display=display)
    except ray.exceptions.RayTaskError:  # a task's own fault
        raise
    except ray.exceptions.RayError as error:
        what = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"--on ray: Ray is lost ({what}). What is finished is kept: continue with --resume.") from error
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse an address at which nobody listens; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=WAIT).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"--address: no Ray cluster answers at {address} ({error}).") from error


def _check_fits(threads: int) -> None:
    """Refuse more threads than a machine of the cluster has cores; Ray would wait for such a machine for ever."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    cores = max((int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]), default=0)
    if threads > cores:
        raise UserError(f"--threads: must be at most the {cores} cores of Ray's largest machine, got {threads}.")


@dataclass
class Pool:
    """Where tasks run."""

    threads: int
    """Of each task."""
    display: Display
    _at_once: int | None = field(default=None, init=False)

    def train(
        self,
        waiting: Sequence[tuple[RunSpec, Settings]],
        dataset: Dataset,
        *,
        directory: RunDirectory,
        observer: Observer,
        begin: Callable[[RunSpec], None],
        end: Callable[[RunRecord], None],
    ) -> None:
        """Train networks, as many at once as are fastest together, and keep what comes of each as it comes.

        Args:
            waiting: those that have not ended, with what each is trained with.
            dataset: of all of them.
            directory: gets states and checkpoints.
            observer: hears of steps and epochs.
            begin: is called when a network's task is given to Ray.
            end: is called with its record.

        Raises:
            UserError: a worker died too often.
        """
        import ray

        if not waiting:
            return
        data = ray.put(dataset)
        at_once = self._measure(*waiting[0], data)
        desk = _desk()
        boards: dict[str, SummaryWriter | None] = {}

        def submit(job: tuple[RunSpec, Settings]) -> Any:  # noqa: ANN401 (Ray's reference to a result)
            spec, settings = job
            known = directory.load_record(spec)
            tensors = directory.load_tensors(spec) if known.epochs else {}
            ray.get(desk.keep.remote(spec.name, known, tensors))
            # One writer for a run, not one for an epoch: TensorBoard reads the files of a run in the order of their
            # names, which is not always that of writers of one second, and drops the epochs that it has read too early.
            boards[spec.name] = open_boards.enter_context(directory.open_board(known))
            begin(spec)
            return _remote(train_network, self._resources(settings)).remote(spec, settings, data, desk, self.threads)

        def collect() -> None:
            for what, *arguments in ray.get(desk.take.remote()):
                _post(what, arguments, directory, boards, observer)

        jobs = {spec.name: (spec, settings) for spec, settings in waiting}
        with contextlib.ExitStack() as open_boards:
            for name, record in self._run(jobs, submit, collect, at_once):
                board = boards.pop(name)
                if board is not None:
                    board.close()
                end(record)

    def measure(
        self,
        cells: Mapping[int, CellRecord],
        make: Callable[[Any], Callable[..., Iterable[Measurement]]],
        task: Any,  # noqa: ANN401 (an experiment's Task, which knows the pool)
        *,
        begin: Callable[[int], None],
    ) -> Iterator[tuple[int, tuple[Measurement, ...], float]]:
        """Measure cells; give the number of each with its rows and seconds, as they end.

        Args:
            cells: those that are not measured, by number.
            make: a function of a module that makes what measures a cell from the experiment's task.
            task: the experiment's.
            begin: is called with the number of a cell that is given to Ray.
        """
        import ray

        if not cells:
            return
        away = ray.put(task.away(Files(_checkpoints(task.directory))))

        def submit(job: tuple[int, CellRecord]) -> Any:  # noqa: ANN401 (as above)
            number, cell = job
            begin(number)
            return _remote(measure_cell, self._resources(None)).remote(make, away, cell.factors, self.threads)

        at_once = self._at_once or self._slots()
        jobs = {number: (number, cell) for number, cell in cells.items()}
        for number, (rows, seconds) in self._run(jobs, submit, lambda: None, at_once):
            yield number, rows, seconds

    def _run(
        self,
        jobs: Mapping[Any, Any],
        submit: Callable[[Any], Any],
        collect: Callable[[], None],
        at_once: int,
    ) -> Iterator[tuple[Any, Any]]:
        """Keep so many tasks running until none is left, and give each key with its result."""
        import ray

        waiting = list(jobs)
        running: dict[Any, Any] = {}
        while waiting or running:
            while waiting and len(running) < at_once:
                key = waiting.pop(0)
                running[submit(jobs[key])] = key
            ready, _ = ray.wait(list(running), timeout=PAUSE)
            collect()
            for reference in ready:
                key = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, UserError | OSError):
                        raise error.cause from error
                    raise
                except ray.exceptions.RayError as error:
                    raise UserError(f"{key}: its worker died {RETRIES + 1} times ({type(error).__name__}).") from error
                yield key, result

    def _slots(self) -> int:
        """Count the tasks that the cluster has cores for."""
        return max(1, _amount("CPU") // self.threads)

    def _measure(self, spec: RunSpec, settings: Settings, data: Any) -> int:  # noqa: ANN401 (Ray's reference)
        """Say how many networks to train at once: measured on the first, as long as one more at once brings something.

        On GPUs as many as there are: a task has one to itself.
        """
        import ray

        if self._at_once is None and settings.device.type == "cuda":
            self._at_once = max(1, _amount("GPU"))
        if self._at_once is not None:
            return self._at_once
        speeds: dict[int, float] = {}
        best, slots = 1, self._slots()
        for number in sorted({*(2**power for power in range(slots.bit_length())), slots}):
            timed = _remote(time_network, self._resources(settings))
            speeds[number] = sum(ray.get([timed.remote(spec, settings, data, self.threads) for _ in range(number)]))
            if number > 1 and speeds[number] < GAIN * speeds[best]:
                break
            best = number
        found = ", ".join(f"{number}: {speed:,.0f}" for number, speed in speeds.items())
        each = f"{self.threads} thread{'' if self.threads == 1 else 's'} each"
        self.display.message(f"{best} at once, {each} (images/s of so many together: {found})")
        self._at_once = best
        return best

    def _resources(self, settings: Settings | None) -> dict[str, float]:
        gpus = {"num_gpus": 1.0} if settings is not None and settings.device.type == "cuda" else {}
        return {"num_cpus": float(self.threads)} | gpus


def _remote(function: Callable[..., Any], resources: dict[str, float]) -> Any:  # noqa: ANN401 (Ray has no type for it)
    import ray

    return ray.remote(function).options(max_retries=RETRIES, **resources)


def _amount(resource: str) -> int:
    """Count what the cluster has of a resource."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(resources.get(resource, 0))


def _desk() -> Any:  # noqa: ANN401 (Ray's handle of an actor)
    """Start a desk on the driver's own machine, which does not go away while there is a driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()


def _post(
    what: str,
    arguments: Sequence[Any],
    directory: RunDirectory,
    boards: Mapping[str, SummaryWriter | None],
    observer: Observer,
) -> None:
    """Do with a letter what the task would have done itself."""
    if what == "checkpoint":
        directory.save_checkpoint(*arguments)
    elif what == "state":
        record, _ = arguments
        directory.save_state(*arguments)
        board = boards[record.spec.name]
        if board is not None and record.status != "diverged":
            write_board(board, record.epochs[-1])
    elif what == "step":
        record, step, steps, loss = arguments
        observer.step(record, step=step, steps=steps, loss=loss)
    else:
        observer.epoch(*arguments)


def _checkpoints(directory: RunDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (directory.path / "checkpoints").glob("*.safetensors")}

"""The same experiments as tasks of Ray: the numbers of local ones, what a dead worker costs, and what is refused."""

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.util.queue import Queue
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from steadynorm.lab import ray_pool
from steadynorm.lab.experiments import EXPERIMENTS
from steadynorm.lab.experiments.compare import CompareConfig
from steadynorm.lab.experiments.landscape import LandscapeConfig
from steadynorm.lab.experiments.stream import StreamConfig
from steadynorm.lab.experiments.sweep import SweepConfig
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.progress import silent_display
from steadynorm.reporting.records import Cell, Record, read_record
from tests.support.experiments import Recorder, tiny_dataset, without_times

pytest.importorskip("ray")
pytestmark = pytest.mark.slow  # a cluster starts in seconds

SWEEP = SweepConfig(
    lr=(0.05, 1e12),
    batch_size=(16,),
    depth=(2,),
    widths=(4, 8),
    epochs=3,
    milestones=(2,),
    largest_rate=True,
    precision="fp32",
    threads=1,
)
STREAM = StreamConfig(
    batch_size=32,
    arms=("group_norm", "batch_norm"),
    methods=("stored", "batch"),
    widths=(4, 8),
    depth=2,
    epochs=2,
    milestones=(1,),
    stream_images=20,
    precision="fp32",
    threads=1,
)
CELLS = LandscapeConfig(
    epochs=1,
    batch_size=16,
    depth=2,
    widths=(4, 8),
    precision="fp32",
    lr=0.05,
    probe_every=4,
    rate_steps=(0.5, 2.0),
    threads=1,
)


@pytest.fixture(scope="module", autouse=True)
def same_data_and_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steadynorm.lab.experiment.load_dataset", lambda *_, **__: tiny_dataset())
        patch.setenv("RAY_worker_niceness", "0")  # by default 15: tests beside these would leave its workers no time
        # Else a cluster asks for a token where an earlier Ray left one, which a driver has by the order of the tests.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield
    torch.set_num_threads(threads)


def test_code_of_the_users_is_found_where_the_driver_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from tests.support.given_networks import Scale, make\n"
    (tmp_path / "models_beside_ray.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = CompareConfig(
        network="models_beside_ray:make",
        arms=("batch_norm", "half=models_beside_ray:Scale,power=0.5"),
        epochs=1,
        milestones=(),
        batch_size=16,
        lr=0.05,
        precision="fp32",
        threads=1,
        on="ray",
        out=tmp_path / "run",
    )
    EXPERIMENTS["compare"].run(config, silent_display())
    assert [cell.status for cell in read_record(tmp_path / "run").cells] == ["finished", "finished"]


def test_a_worker_that_runs_elsewhere_looks_where_the_driver_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    before, driver = [*sys.path], ("/place/of/the/driver", sys.path[-1], "/its/packages")
    for _ in range(2):  # a process measures several cells
        assert ray_pool._made((uuid.uuid4(), lambda task: task, "made", driver), 1) == "made"
        assert sys.path == ["/place/of/the/driver", *before, "/its/packages"]


def is_free(port: int) -> bool:
    with socket.socket() as one, contextlib.suppress(OSError):
        one.bind(("127.0.0.1", port))
        return True
    return False


@pytest.fixture(scope="module")
def ports() -> list[int]:
    """Two free ports, others in each process of the tests.

    They lie below those that systems give away: of these another process of Ray's may take one first.
    """
    candidates = itertools.count(20_000 + 2 * (os.getpid() % 5_000))
    return list(itertools.islice(filter(is_free, candidates), 2))


@pytest.fixture(scope="module")
def head(ports: list[int]) -> Iterator[psutil.Popen]:
    """A Ray cluster of two cores, started and stopped here; others on this machine are left alone."""
    ray = str(Path(sys.executable).with_name("ray"))
    start = [ray, "start", "--head", f"--port={ports[0]}", f"--ray-client-server-port={ports[1]}", "--num-cpus=2"]
    options = ["--include-dashboard=false", "--disable-usage-stats", "--block"]
    with psutil.Popen([*start, *options], stdout=subprocess.DEVNULL) as process:
        await_answer(ports[0])
        yield process
        rest = process.children(recursive=True)
        process.terminate()
        process.wait()
        for each in psutil.wait_procs(rest, timeout=5)[1]:
            each.kill()


@pytest.fixture
def cluster(head: psutil.Popen, ports: list[int]) -> str:
    """The cluster's address."""
    return f"127.0.0.1:{ports[0]}"


def await_answer(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise AssertionError("the cluster did not start")


def run(config: Any, display: Recorder | None = None) -> Record:
    return read_record(
        next(one for one in EXPERIMENTS.values() if one.config is type(config)).run(config, display or Recorder())
    )


def numbers(record: Record) -> Any:
    """All that is measured."""
    return [*map(without_times, record.cells)]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("local") / "a"
    run(replace(SWEEP, out=place))
    return place


@pytest.mark.usefixtures("cluster")  # another, which is not to be joined
def test_a_sweep_on_a_ray_of_its_own_equals_the_local_one_run_for_run(
    local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    display, place, expected = Recorder(), tmp_path / "a", read_record(local)
    queues: list[Queue] = []
    monkeypatch.setattr("ray.util.queue.Queue", lambda **given: queues.append(Queue(**given)) or queues[-1])
    found = run(replace(SWEEP, on="ray", out=place), display)
    assert [queue.actor for queue in queues] == [None], "one for the grid and the search, ended"
    assert numbers(found) == numbers(expected) and len(found.cells) > 8
    assert {one.status for one in found.cells} == {"finished", "diverged"} and EXPERIMENTS["sweep"].describe(
        found
    ).finished
    assert any(" at once, 1 thread each" in message for message in display.messages)
    both = [sorted((one / "checkpoints").iterdir()) for one in (place, local)]
    assert [path.name for path in both[0]] == [path.name for path in both[1]]
    for first, second in zip(*both, strict=True):
        tensors, others = load_file(first), load_file(second)
        assert tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert {len(list(one.iterdir())) for one in (place / "tensorboard").iterdir()} == {1}, "their order is not sure"
    events = EventAccumulator(str(place / "tensorboard" / both[0][0].stem))
    events.Reload()
    assert [event.step for event in events.Scalars("val/accuracy")] == [*found.cells[0].series("val_accuracy")]


@pytest.mark.parametrize(
    "config", [STREAM, replace(CELLS, arms=("batch_norm", "none"))], ids=["with checkpoints", "without"]
)
def test_cells_on_a_cluster_equal_local_ones(config: Any, cluster: str, tmp_path: Path) -> None:
    display = Recorder()
    found = run(replace(config, on="ray", address=cluster, out=tmp_path / "a"), display)
    assert numbers(found) == numbers(run(replace(config, out=tmp_path / "b"))) and len(found.cells) > 1
    assert len(display.ended) == len(found.cells)


class Killing(Recorder):
    """Kills every task once, at the first epoch that it hears of."""

    def __init__(self, head: psutil.Process) -> None:
        super().__init__()
        self.head = head
        self.killed = 0

    def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
        if lasting and not self.killed:
            tasks = [one for one in self.head.children(recursive=True) if "ray::_measure" in one.cmdline()[0]]
            for one in tasks:
                one.send_signal(signal.SIGKILL)
            self.killed = len(tasks)


def test_a_killed_worker_costs_nothing_that_was_finished(head: psutil.Popen, cluster: str, tmp_path: Path) -> None:
    long = replace(SWEEP, lr=(0.05,), depth=(2,), arms=("batch_norm",), epochs=40, milestones=(), largest_rate=False)
    display = Killing(head)
    found = run(replace(long, on="ray", address=cluster, out=tmp_path / "a"), display)
    assert display.killed == 1
    assert numbers(found) == numbers(run(replace(long, out=tmp_path / "b")))


def test_a_stopped_driver_goes_on_where_it_was(cluster: str, tmp_path: Path) -> None:
    place, grid = tmp_path / "a", replace(SWEEP, largest_rate=False)
    display = Recorder(fail_after_epoch=2, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(replace(grid, on="ray", address=cluster, out=place), display)
    assert display.messages[-1].endswith(f"with: steadynorm sweep --resume {place} --on ray --address {cluster}")
    begun = [one for one in read_record(place).cells if one.measurements]
    assert begun and not all(one.status == "finished" for one in begun)
    expected = numbers(run(replace(grid, out=tmp_path / "b")))
    assert numbers(run(SweepConfig(resume=place, on="ray", address=cluster))) == expected
    assert numbers(run(SweepConfig(resume=place))) == expected


def test_what_cannot_be_done_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--address: needs a Ray cluster\. Add --on ray\."):
        run(replace(SWEEP, address="auto", out=tmp_path / "a"))
    with pytest.raises(UserError, match=r"--threads: must be at least 1, got 0\."):
        run(replace(SWEEP, threads=0, out=tmp_path / "a"))
    monkeypatch.setattr(ray_pool, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"Ray is not installed\. Run: pip install 'steadynorm\[ray\]'"):
        run(replace(SWEEP, on="ray", out=tmp_path / "b"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere", "nowhere.invalid:6379", "a:b"])
def test_no_cluster_at_the_address_is_said(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"--address: no Ray cluster answers at {address} (")):
        run(replace(SWEEP, on="ray", address=address, out=tmp_path / "a"))


def test_no_cluster_on_this_machine_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def find_none(**_: object) -> None:
        raise ConnectionError("none is running")

    monkeypatch.setattr("ray.init", find_none)
    with pytest.raises(UserError, match=r"--address: no Ray cluster answers at auto \(none is running\)\."):
        run(replace(SWEEP, on="ray", address="auto", out=tmp_path / "a"))


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("no port is free")

    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(UserError, match=r"^--on ray: Ray does not start here \(no port is free\)\.$"):
        run(replace(SWEEP, on="ray", out=tmp_path / "a"))


def test_a_ray_that_goes_away_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **given: None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    lost = ray.exceptions.ActorUnavailableError("RPC error: keepalive watchdog timeout.\nmore", None)
    with (
        pytest.raises(UserError, match=r"Ray is lost \(.*keepalive watchdog timeout.*--resume\.$") as caught,
        ray_pool.open_pool(None, threads=1, display=silent_display()),
    ):
        raise lost
    assert "\n" not in str(caught.value)


def test_more_threads_than_a_machine_of_the_cluster_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = [(True, {"CPU": 2.0}), (True, {"CPU": 6.0, "GPU": 1.0}), (False, {"CPU": 64.0}), (True, {})]
    monkeypatch.setattr(ray, "init", lambda **given: None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": alive, "Resources": has} for alive, has in machines])
    with ray_pool.open_pool("auto", threads=6, display=silent_display()):
        pass
    with (
        pytest.raises(UserError, match=r"--threads: must be at most the 6 cores of Ray's largest machine, got 7\."),
        ray_pool.open_pool("auto", threads=7, display=silent_display()),
    ):
        pass


def test_one_at_once_is_enough_where_a_second_brings_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images per second together, by how many train at once: the last that brought something is chosen."""
    import ray

    for speeds, best in (({1: 100, 2: 103}, 1), ({1: 100, 2: 180, 4: 185}, 2), ({1: 100, 2: 180, 4: 340, 6: 500}, 6)):
        pool = ray_pool.Pool(threads=1, display=silent_display())
        monkeypatch.setattr(ray_pool, "_amount", lambda _, speeds=speeds: max(speeds))
        timed = SimpleNamespace(remote=lambda *_: None)
        monkeypatch.setattr(ray_pool.Pool, "_remote", lambda *_, timed=timed: timed)
        monkeypatch.setattr(ray, "get", lambda asked, speeds=speeds: [speeds[len(asked)] / len(asked)] * len(asked))
        assert pool._how_many(Cell(factors={}), None, 0.0) == best

"""Several workers: the numbers of one, one's files, and what happens when a worker dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from steadynorm.lab import experiment
from steadynorm.lab.experiments import compare, landscape
from steadynorm.lab.experiments.compare import CompareConfig
from steadynorm.lab.experiments.landscape import LandscapeConfig
from steadynorm.lab.workers import joined, on_first, was_restarted, worker
from steadynorm.ops.dispatch import backend
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Cell, Record, read_record
from tests.support.experiments import TINY, Recorder, on_tiny_data, tiny_dataset, without_times
from tests.support.ranks import on_ranks

pytestmark = pytest.mark.slow  # workers start in seconds
SYNCHRONISED = replace(TINY, arms=("sync_batch_norm",), epochs=3, milestones=(2,), accumulate=2, augment="crop-flip")
PER_WORKER = replace(TINY, arms=("batch_norm",), epochs=4, batch_size=64)
CELLS = LandscapeConfig(
    epochs=1, batch_size=16, depth=2, widths=(4, 8), precision="fp32", lr=0.05, probe_every=4, rate_steps=(0.5, 2.0)
)
NUMBERS = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
NUMBERS += ["grad_norm_mean", "grad_norm_p5", "grad_norm_p95"]


def compared(config: CompareConfig, display: Recorder | None = None) -> Cell:
    """The one network of a comparison."""
    with on_tiny_data():
        place = compare.EXPERIMENT.run(config, display or Recorder())
    record: Record = on_first(lambda: read_record(place))
    return record.cells[0]


def measured(config: LandscapeConfig, display: Recorder | None = None) -> Record:
    with on_tiny_data():
        place = landscape.EXPERIMENT.run(config, display or Recorder())
    record: Record = on_first(lambda: read_record(place))
    return record


def on_two(folder: Path) -> dict[str, Any]:
    """Everything for two workers, each in a folder of its own."""
    place = folder / f"worker {dist.get_rank()}"
    place.mkdir()
    os.chdir(place)
    display = Recorder()
    found = {
        "synchronised": compared(replace(SYNCHRONISED, out=Path("a"))),
        "resumed": _in_two_parts(replace(SYNCHRONISED, out=Path("b"))),
        "per worker": compared(replace(PER_WORKER, out=Path("c"))),
        "cells": [cell.measurements for cell in measured(replace(CELLS, out=Path("d")), display).cells],
        "own cells": display.begun,
        "other seeds": _refused(lambda: compared(replace(SYNCHRONISED, seeds=(dist.get_rank(),), out=Path("e")))),
        "odd batch": _refused(lambda: compared(replace(SYNCHRONISED, batch_size=15, out=Path("e")))),
        "other data": _refused_on_one("load_dataset", lambda *_, **__: tiny_dataset(dist.get_rank())),
        "other versions": _refused_on_one("describe_versions", lambda: {"torch": f"2.{dist.get_rank()}"}),
        "once more": _refused(lambda: compared(replace(SYNCHRONISED, out=Path("a")))),
        "one's": _refused(lambda: compared(CompareConfig(resume=folder / "one"))),
    }
    return found | {"folder": place, "files": sorted(path.name for path in place.iterdir())}


def _in_two_parts(config: CompareConfig) -> Cell:
    with pytest.raises(KeyboardInterrupt):
        compared(config, Recorder(fail_after_epoch=2, error=KeyboardInterrupt()))
    return compared(CompareConfig(resume=config.out))


def _refused(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


def _refused_on_one(name: str, instead: Callable[..., object]) -> str:
    """Let the workers see different things."""
    with mock.patch.object(experiment, name, instead), pytest.raises(UserError) as caught, backend("torch"):
        compare.EXPERIMENT.run(replace(SYNCHRONISED, out=Path("e")), Recorder())
    return str(caught.value)


def on_four(folder: Path) -> Cell:
    return compared(replace(SYNCHRONISED, out=folder / "four"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    torch.set_num_threads(1)
    compared(replace(SYNCHRONISED, out=folder / "one"))
    return on_ranks(partial(on_two, folder), 2, folder)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    return compared(replace(SYNCHRONISED, out=tmp_path_factory.mktemp("one") / "a"))


def curves(record: Cell) -> dict[str, list[float]]:
    norms = {layer: [*record.series("grad_norm_mean", layer).values()] for layer in record.values("grad_norm_mean")}
    return norms | {name: [*record.series(name).values()] for name in NUMBERS}


def test_two_and_four_workers_give_the_numbers_of_one(two: list[dict[str, Any]], one: Cell, tmp_path: Path) -> None:
    """Losses, accuracies and the gradient norms of all and of each layer, of the same global batch."""
    expected = curves(one)
    losses = one.series("train_loss")
    assert len(losses) == 3 and losses[3] < losses[1]
    for found in (two[0]["synchronised"], two[1]["synchronised"], on_ranks(partial(on_four, tmp_path), 4, tmp_path)[0]):
        for name, values in curves(found).items():
            assert values == pytest.approx(expected[name], rel=1e-4), name


def test_without_synchronisation_each_worker_normalizes_its_own_part(two: list[dict[str, Any]], tmp_path: Path) -> None:
    """Two workers' batches of 32 are one process's ghost batches of 32."""
    ghost = compared(replace(PER_WORKER, arms=("ghost_batch_norm",), out=tmp_path / "a"))
    whole = compared(replace(PER_WORKER, out=tmp_path / "b"))
    losses = [[*run.series("train_loss").values()] for run in (two[0]["per worker"], ghost, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0] != pytest.approx(losses[2], rel=1e-3)
    means = [
        [value for name, value in load_file(next(path.glob("checkpoints/*"))).items() if name.endswith("running_mean")]
        for path in (two[0]["folder"] / "c", tmp_path / "a")
    ]
    torch.testing.assert_close(means[0], means[1])  # of both workers, as the ghosts' are of the whole batch


def test_what_is_resumed_ends_with_the_same_numbers_bit_for_bit(two: list[dict[str, Any]]) -> None:
    assert without_times(two[0]["resumed"]) == without_times(two[0]["synchronised"])


def test_only_the_first_worker_needs_the_disk(two: list[dict[str, Any]]) -> None:
    assert [each["files"] for each in two] == [["a", "b", "c", "d"], []]
    assert without_times(two[1]["synchronised"]) == without_times(two[0]["synchronised"])


def test_cells_are_shared_between_the_workers(two: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = [cell.measurements for cell in measured(replace(CELLS, out=tmp_path / "a")).cells]
    assert two[0]["cells"] == expected and len(expected) == 3
    assert two[0]["own cells"] == ["1/3 batch_norm-seed0", "3/3 none-seed0"]
    assert two[1]["own cells"] == ["2/3 noisy_batch_norm-seed0"]


def test_what_cannot_be_done_is_one_line_on_every_worker(two: list[dict[str, Any]]) -> None:
    for found in two:
        assert found["other seeds"] == (
            "--seeds: must be the same on every worker, got (0,) on worker 0 and (1,) on worker 1. "
            "Start them with the same command."
        )
        assert found["odd batch"] == (
            "--batch-size: 15 cannot be split evenly over 2 workers. Choose a multiple of 2, or start fewer workers."
        )
        assert found["other data"].startswith("data_sha256: must be the same on every worker, got ")
        assert found["other versions"] == (
            "torch: must be the same on every worker, got 2.0 on worker 0 and 2.1 on worker 1. "
            "Install the same versions."
        )
        assert found["once more"].startswith("a: holds an experiment already.")
        assert found["one's"] == (
            "--resume: the experiment began on 1 worker, now there are 2. Run it without torchrun."
        )


class Dying(Recorder):
    """Worker 1 dies in the middle of the third epoch, the first time."""

    def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
        if share > 2 / 3 and worker() == 1 and not was_restarted():
            os.kill(os.getpid(), signal.SIGKILL)


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *command],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
    )


def test_a_worker_killed_under_torchrun_costs_nothing_that_was_finished(
    two: list[dict[str, Any]], tmp_path: Path
) -> None:
    done = torchrun("--max-restarts", "1", "-m", "tests.lab.experiments.test_torchrun", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    assert "exitcode: -9" in done.stderr and "goes on after epoch 2" in done.stdout
    (run,) = read_record(tmp_path / "a").cells
    assert without_times(run) == without_times(two[0]["synchronised"])


def test_the_command_shows_everything_once(tmp_path: Path) -> None:
    small = {"arms": "sync_batch_norm", "depth": 2, "epochs": 1, "train-images": 64, "batch-size": 32}
    flags = ["--widths", "2", "2", *(word for name, value in small.items() for word in (f"--{name}", str(value)))]
    done = torchrun("-m", "steadynorm", "compare", *flags, "--out", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 1/1") == 1 and "with 2 workers of 1 thread" in done.stderr
    assert done.stdout.count("report: ") == 1
    again = torchrun("-m", "steadynorm", "compare", *flags, "--batch-size", "33")
    assert again.returncode != 0
    (line,) = [line for line in again.stderr.splitlines() if line.startswith("steadynorm: ")]
    assert line.startswith("steadynorm: --batch-size: 33 cannot be split evenly over 2 workers.")


class Resuming(Dying):
    def begin(self, name: str, *, text: str = "", **named: Any) -> None:
        if worker() == 0:
            print(text, flush=True)


if __name__ == "__main__":
    with joined():
        compared(replace(SYNCHRONISED, out=Path(sys.argv[1])), Resuming())

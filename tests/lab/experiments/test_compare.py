import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steadynorm.lab import experiment, machine
from steadynorm.lab.cells import Job
from steadynorm.lab.configuration import quickened
from steadynorm.lab.experiments import compare
from steadynorm.lab.experiments.compare import CompareConfig, best_rate
from steadynorm.lab.training import Training
from steadynorm.reporting import files
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Record, read_record
from steadynorm.reporting.run_directory import RunDirectory
from tests.support.experiments import TINY, Recorder, kill, on_tiny_data, tiny_dataset, without_times


def run(config: CompareConfig, display: Recorder | None = None) -> Record:
    with on_tiny_data():
        return read_record(compare.EXPERIMENT.run(config, display or Recorder()))


class Slow(Recorder):
    """Says when the first network begins, waits after an epoch, and after its second without end: it must be killed."""

    epochs = 0

    def begin(self, name: str, **named: Any) -> None:
        print("begun", flush=True)

    def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
        if lasting:
            self.epochs += 1
            time.sleep(0.4 if self.epochs < 2 else 600)


def worker(how: str, place: str, threads: str) -> None:
    """Run the tiny comparison as a process."""
    torch.set_num_threads(int(threads))
    run(replace(TINY, out=Path(place)) if how == "out" else CompareConfig(resume=Path(place)), Slow())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return run(replace(TINY, out=tmp_path_factory.mktemp("runs") / "undisturbed"))


def same(first: Record, second: Record) -> bool:
    return [*map(without_times, first.cells)] == [*map(without_times, second.cells)]


def test_every_arm_is_trained_once_per_seed(tmp_path: Path) -> None:
    record = run(replace(TINY, epochs=1, milestones=(), seeds=(3, 4), out=tmp_path / "a"))
    assert [(one.factors["arm"], one.factors["seed"], one.status) for one in record.cells] == [
        ("batch_norm", 3, "finished"),
        ("none", 3, "finished"),
        ("batch_norm", 4, "finished"),
        ("none", 4, "finished"),
    ]


def test_an_interrupted_comparison_resumes_to_the_same_numbers(tmp_path: Path, undisturbed: Record) -> None:
    place = tmp_path / "a"
    display = Recorder(fail_after_epoch=2, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(replace(TINY, out=place), display)
    assert display.messages[-1].endswith(f"steadynorm compare --resume {place}")
    assert same(run(CompareConfig(resume=place)), undisturbed)


@pytest.mark.slow
def test_a_comparison_killed_at_any_moment_resumes_to_the_same_numbers(tmp_path: Path, undisturbed: Record) -> None:
    """Killed by SIGKILL three times, at random moments of the two of eight epochs that each process goes through."""
    place, moments = tmp_path / "a", random.Random(0)
    for how in ("out", "resume", "resume"):
        kill(worker, how, place, undisturbed.resolved["threads"], after=moments.uniform(0, 0.8))
    assert any(one.status != "finished" for one in read_record(place).cells)
    assert same(run(CompareConfig(resume=place)), undisturbed)


def test_rates_are_tuned_on_held_out_training_images_and_compared_at_both(tmp_path: Path) -> None:
    record = run(replace(TINY, tune_lr=(1e-6, 0.05, 1e12), out=tmp_path / "a"))
    tuning = record.select(purpose="tune")
    assert [(one.factors["arm"], one.factors["lr"]) for one in tuning] == [
        (arm, rate) for arm in ("batch_norm", "none") for rate in (1e-6, 0.05, 1e12)
    ]
    assert all(one.factors["epochs"] == 1 and one.factors["seed"] == 0 for one in tuning)
    for arm in TINY.arms:
        rates = [one.factors["lr"] for one in record.select(purpose=None, arm=arm)]
        best = best_rate(tuning, arm)
        ended = record.select(purpose="tune", arm=arm)
        held_out = {one.factors["lr"]: one.last("val_accuracy") for one in ended if one.status == "finished"}
        assert held_out[best] == max(held_out.values())
        assert rates == sorted({0.05, best})


def test_tuning_runs_begin_at_the_rate_they_are_to_judge(tmp_path: Path) -> None:
    record = run(replace(TINY, arms=("none",), tune_lr=(0.01,), out=tmp_path / "a"))
    assert [one.series("learning_rate")[1] for one in record.select(purpose="tune")] == [0.01]


def test_tuning_never_sees_the_validation_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str | None, int, int]] = []
    call = Training.__call__

    def spy(training: Training, job: Job) -> Iterator[Any]:
        data = training.dataset
        seen.append((job.factors.get("purpose"), len(data.train), len(data.validation)))
        return call(training, job)

    monkeypatch.setattr(Training, "__call__", spy)
    run(replace(TINY, epochs=1, milestones=(), arms=("none",), tune_lr=(0.05,), out=tmp_path / "a"))
    assert seen == [("tune", 86, 10), (None, 96, 30)]


def test_a_full_disk_leaves_no_half_file_and_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Record
) -> None:
    place = tmp_path / "a"
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "state" in path.parts and len(list(path.parent.glob("*.safetensors"))) == 1:
            write_bytes(path, content[:100])
            raise OSError(28, "No space left on device", str(path))
        return write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(files.Path, "write_bytes", full)
        with pytest.raises(UserError, match=f"No space left on device.*--resume {place}"):
            run(replace(TINY, out=place))
    assert [path.name for path in place.rglob("*.part")] == []
    assert same(run(CompareConfig(resume=place)), undisturbed)


def test_a_directory_in_use_is_refused_and_left_alone(tmp_path: Path, undisturbed: Record) -> None:
    place = tmp_path / "a"
    with RunDirectory(place).lock(), pytest.raises(UserError, match="another process"):
        run(replace(TINY, out=place))
    assert [path.name for path in place.iterdir()] == [".lock"]


def test_a_directory_with_an_experiment_is_not_overwritten(tmp_path: Path) -> None:
    place = tmp_path / "a"
    before = run(replace(TINY, epochs=1, milestones=(), out=place))
    with pytest.raises(UserError, match="holds an experiment already"):
        run(replace(TINY, epochs=1, milestones=(), out=place))
    assert read_record(place) == before


def test_resuming_with_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "a"
    run(replace(TINY, epochs=1, milestones=(), out=place))
    other = tiny_dataset()
    other.train.pixels.zero_()
    monkeypatch.setattr(experiment, "load_dataset", lambda name, **_: other)
    with pytest.raises(UserError, match="the data differ from those"):
        compare.EXPERIMENT.run(CompareConfig(resume=place), Recorder())


def test_resuming_uses_the_threads_that_the_experiment_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 7)
        patch.setattr(machine, "count_cores", lambda: 8)
        run(replace(TINY, epochs=1, milestones=(), out=place))
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run(CompareConfig(resume=place))
    assert asked == [7]


def test_there_are_never_more_threads_than_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(machine, "count_cores", lambda: 3)
    run(replace(TINY, epochs=1, milestones=(), out=tmp_path / "a"))
    with pytest.raises(UserError, match=r"--threads: must be at most the 3 cores that this process may use, got 4\."):
        run(replace(TINY, epochs=1, milestones=(), out=tmp_path / "b", threads=4))
    assert asked == [3]


def test_quick_shortens_what_was_not_set() -> None:
    quick = quickened(CompareConfig(quick=True, widths=(8, 8)), compare.QUICK)
    assert (quick.epochs, quick.widths, quick.milestones) == (5, (8, 8), (3, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("bn",)}, "--arms: no normalization is called 'bn'"),
        ({"arms": ()}, "--arms: at least one value"),
        ({"seeds": ()}, "--seeds: at least one value"),
        ({"seeds": (-1,)}, "--seeds: must be in"),
        ({"seeds": (1, 1)}, "--seeds: every value may appear once"),
        ({"epochs": 0}, "--epochs: must be at least 1, got 0"),
        ({"batch_size": 1}, "--batch-size: must be at least 2, got 1"),
        ({"momentum": 1.0}, "--momentum: must be below 1"),
        ({"momentum": float("nan")}, "--momentum: must be at least 0"),
        ({"weight_decay": -1.0}, "--weight-decay: must be at least 0"),
        ({"weight_decay": float("inf")}, "--weight-decay: must be finite, got inf"),
        ({"milestones": (-1,)}, "--milestones: must rise strictly from at least 1 to less than the 20 epochs, got -1"),
        ({"milestones": (0, 3)}, "--milestones: .*got 0 3"),
        ({"milestones": (3, 3)}, "--milestones: .*got 3 3"),
        ({"milestones": (5, 3)}, "--milestones: .*got 5 3"),
        ({"milestones": (20,)}, "--milestones: .*less than the 20 epochs, got 20"),
        ({"quick": True, "milestones": (9,)}, "--milestones: .*less than the 5 epochs, got 9"),
        ({"network": "resnet20", "widths": (8,)}, r"--widths: --network resnet20 has its own\. Drop it"),
        ({"network": "resnet20", "widths": (8,), "depth": 9}, r"--widths --depth: .*Drop them, or give --network cnn"),
        ({"threads": 100_000}, "--threads: must be at most the .* cores"),
        ({"lr": 0.0}, "--lr: a learning rate must be a positive number"),
        ({"tune_lr": (float("inf"),)}, "--tune-lr: a learning rate"),
        ({"data_dir": Path("x")}, r"--data-dir: is read with --data cifar10 only\. Add --data cifar10"),
        ({"quick": True, "data": "cifar10"}, "--quick: runs on the embedded data"),
        ({"depth": 2, "widths": (1, 2, 3)}, "--depth: 3 stages need"),
    ],
)
def test_a_configuration_that_makes_no_experiment_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    place = tmp_path / "a"
    with pytest.raises(UserError, match=message):
        run(replace(CompareConfig(out=place), **changes))
    assert not place.exists()

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from steadynorm.bench.benchmark import Benchmark, Flags, check_config
from steadynorm.bench.kernels import KernelsFlags
from steadynorm.bench.record import Json, read_record
from steadynorm.bench.step import StepFlags
from steadynorm.lab import machine
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.progress import Display
from steadynorm.reporting.report import Table
from tests.support.bench import Lines


@dataclass(frozen=True, kw_only=True)
class SquaresFlags(Flags):
    numbers: tuple[int, ...] = (2, 3)


def _plan(config: SquaresFlags, head: Json, display: Display) -> Sequence[int]:
    display.message("the plan")
    head["count"] = len(config.numbers)
    return config.numbers


def squares(stop_at: int | None = None) -> Benchmark[SquaresFlags, int]:
    """A benchmark at which Ctrl-C comes with a number."""

    def measure(case: int, config: SquaresFlags, head: Json) -> Json:
        if case == stop_at:
            raise KeyboardInterrupt
        return {"square": case**2, "of": head["count"]}

    return Benchmark(
        name="squares",
        command="square",
        flags=SquaresFlags,
        rows="squares",
        plan=_plan,
        label=lambda case: f"number {case}",
        measure=measure,
        lines=lambda row: [f"square {row['square']}", "and a second line"],
        summarize=lambda rows, head: {"sum": sum(row["square"] for row in rows)},
        table=lambda record: ("", Table(columns=(), rows=())),
    )


def test_the_record_holds_head_plan_rows_and_summary() -> None:
    record = squares().run(SquaresFlags(), Lines())
    assert (record["bench"], record["command"]) == ("squares", "steadynorm bench square")
    assert (record["count"], record["complete"], record["sum"]) == (2, True, 13)
    assert record["squares"] == [{"square": 4, "of": 2}, {"square": 9, "of": 2}]


def test_every_row_is_shown_when_it_is_measured() -> None:
    display = Lines()
    squares().run(SquaresFlags(), display)
    second = "and a second line"
    assert display.lines == ["the plan", "square 4", second, "square 9", second]
    assert display.done == [("number 2", 1, 2), ("number 3", 2, 2)]


def test_the_number_of_threads_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "count_cores", lambda: before + 1)
    try:
        assert squares().run(SquaresFlags(threads=before + 1), Lines())["threads"] == before + 1
    finally:
        torch.set_num_threads(before)


def test_an_interrupted_run_writes_what_it_has(tmp_path: Path) -> None:
    display = Lines()
    with pytest.raises(KeyboardInterrupt):
        squares(stop_at=3).run(SquaresFlags(out=tmp_path), display)
    (path,) = tmp_path.iterdir()
    record = read_record(path)
    assert (record["complete"], record["squares"], record["sum"]) == (False, [{"square": 4, "of": 2}], 4)
    assert display.lines[-1] == f"record: {path}"


def test_a_run_that_is_interrupted_at_once_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        squares(stop_at=2).run(SquaresFlags(out=tmp_path), Lines())
    assert list(tmp_path.iterdir()) == []


def test_records_of_two_runs_lie_side_by_side(tmp_path: Path) -> None:
    for _ in range(2):
        squares().run(SquaresFlags(out=tmp_path), Lines())
    assert len(list(tmp_path.glob("bench_squares_*.json"))) == 2


def test_what_measures_nothing_is_refused_first() -> None:
    display = Lines()
    with pytest.raises(UserError, match="--numbers: at least one"):
        squares().run(SquaresFlags(numbers=()), display)
    assert display.lines == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (KernelsFlags(op=()), "--op: at least one value is needed"),
        (KernelsFlags(dtypes=("float32", "float32")), "--dtypes: every value may appear once, got float32 float32"),
        (KernelsFlags(batches=(8, 0)), "--batches: must be positive, got 0"),
        (KernelsFlags(max_mb=-1.0), r"--max-mb: must be positive, got -1\.0"),
        (KernelsFlags(seconds=float("nan")), "--seconds: must be positive, got nan"),
        (KernelsFlags(threads=0), "--threads: must be positive, got 0"),
        (KernelsFlags(threads=100_000), r"--threads: must be at most the \d+ cores .*, got 100000"),
        (StepFlags(batch=0), "--batch: must be positive, got 0"),
    ],
)
def test_what_measures_nothing_is_refused(config: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(config)


def test_the_defaults_are_not_refused() -> None:
    check_config(KernelsFlags())
    check_config(StepFlags())


def test_the_directory_is_made_before_anything_is_measured(tmp_path: Path) -> None:
    check_config(KernelsFlags(out=tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()

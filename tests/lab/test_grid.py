from dataclasses import replace
from pathlib import Path

import pytest

from steadynorm.lab.grid import train_grid
from steadynorm.lab.run_directory import RunDirectory
from steadynorm.reporting.records import RunRecord, RunSpec, read_record
from tests.support.experiments import TINY_SETTINGS, Recorder, tiny_dataset
from tests.support.records import RECORD

DATA = tiny_dataset()
NORM = RunSpec(arm="batch_norm", seed=0, lr=0.05, epochs=2)
NONE = replace(NORM, arm="none")
WILD = replace(NONE, lr=1e12)


def run(
    path: Path, specs: list[RunSpec], display: Recorder, before: tuple[RunRecord, ...] = ()
) -> tuple[RunRecord, ...]:
    directory = RunDirectory(path)
    return train_grid(specs, TINY_SETTINGS, DATA, directory=directory, display=display, before=before)


def test_an_arm_that_diverges_does_not_stop_the_others(tmp_path: Path) -> None:
    display = Recorder()
    records = run(tmp_path, [WILD, NORM], display)
    assert [record.status for record in records] == ["diverged", "finished"]
    assert [record.spec for record in display.ended] == [WILD, NORM]


def test_the_tables_hold_what_is_finished_when_a_later_network_fails(tmp_path: Path) -> None:
    RunDirectory(tmp_path).begin(RECORD)
    with pytest.raises(RuntimeError, match="on purpose"):
        run(tmp_path, [NORM, NONE], Recorder(fail_after_epoch=1))
    first, second = read_record(tmp_path).runs
    assert (first.status, len(first.epochs)) == ("running", 1)
    assert (second.status, len(second.epochs)) == ("waiting", 0)


def test_what_is_finished_is_skipped_and_stays_in_the_tables(tmp_path: Path) -> None:
    RunDirectory(tmp_path).begin(RECORD)
    (finished,) = run(tmp_path, [NORM], Recorder())
    display = Recorder()
    assert run(tmp_path, [NORM, NONE], display)[0] == finished
    assert display.begun == [f"2/2 {NONE.name} 0 2"]
    assert [record.spec for record in read_record(tmp_path).runs] == [NORM, NONE]


def test_records_from_before_stay_in_the_tables(tmp_path: Path) -> None:
    RunDirectory(tmp_path).begin(RECORD)
    earlier = RunRecord(spec=replace(NORM, purpose="tune"), status="finished")
    run(tmp_path, [NORM], Recorder(), (earlier,))
    assert [record.spec.purpose for record in read_record(tmp_path).runs] == ["tune", "compare"]


def test_the_display_hears_how_many_epochs_are_left(tmp_path: Path) -> None:
    display = Recorder()
    run(tmp_path, [NORM, NONE], display)
    assert display.begun == [f"1/2 {NORM.name} 0 4", f"2/2 {NONE.name} 0 2"]


def test_the_tables_know_from_the_start_what_is_planned(tmp_path: Path) -> None:
    RunDirectory(tmp_path).begin(RECORD)

    class Stopping(Recorder):
        """Stops before the first network trains."""

        def begin(self, spec: RunSpec, **numbers: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [NORM, NONE], Stopping())
    assert [(one.spec, one.status) for one in read_record(tmp_path).runs] == [(NORM, "waiting"), (NONE, "waiting")]

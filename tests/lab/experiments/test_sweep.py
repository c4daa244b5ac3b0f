from dataclasses import replace
from pathlib import Path

import pytest

from steadynorm.lab.experiments import sweep
from steadynorm.lab.experiments.sweep import SweepConfig, rate_limits
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.records import Record, read_record
from tests.support.experiments import Recorder, on_tiny_data, without_times

TINY = SweepConfig(
    lr=(0.05, 1e12), batch_size=(16,), depth=(2, 3), widths=(4, 8), epochs=2, milestones=(1,), precision="fp32"
)


def run(config: SweepConfig, display: Recorder | None = None) -> Record:
    with on_tiny_data():
        return read_record(sweep.EXPERIMENT.run(config, display or Recorder()))


def test_every_place_of_the_grid_is_trained_with_its_own_depth_and_batch_size(tmp_path: Path) -> None:
    display = Recorder()
    record = run(replace(TINY, batch_size=(16, 32), lr=(0.05,), arms=("none",), out=tmp_path / "a"), display)
    found = [(one.factors["depth"], one.factors["batch_size"], one.status) for one in record.cells]
    assert found == [(depth, size, "finished") for depth in (2, 3) for size in (16, 32)]
    assert [sum(name.startswith("conv") for name in one.values("grad_norm_mean")) for one in record.cells] == [
        2,
        2,
        3,
        3,
    ]
    assert {steps // 2 for steps in display.steps.values()} == {6, 3}  # an epoch of 96 images


def test_what_explodes_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    record = run(replace(TINY, arms=("none",), depth=(2,), out=tmp_path / "a"))
    tame, wild = record.cells
    assert (tame.status, wild.status) == ("finished", "diverged")
    assert 1 < wild.diverged_at_step <= 6


def test_the_search_brackets_the_largest_rate_of_every_arm(tmp_path: Path) -> None:
    record = run(replace(TINY, lr=(0.05,), depth=(2,), largest_rate=True, out=tmp_path / "a"))
    found = rate_limits(record)
    assert [limit.arm for limit in found] == ["batch_norm", "none"]
    assert all(one.is_close and one.trains for limit in found for one in limit.brackets)
    searched = record.select(purpose="stability")
    assert all(
        one.factors["epochs"] == 2 and one.last("learning_rate") == one.factors["lr"]
        for one in searched
        if one.status == "finished"
    )


def test_a_search_takes_a_hundred_steps_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sweep.SEARCH_EPOCHS * sweep.SEARCH_STEPS == 100
    monkeypatch.setattr(sweep, "SEARCH_STEPS", 2)
    display = Recorder()
    run(replace(TINY, lr=(0.05,), depth=(2,), arms=("none",), largest_rate=True, out=tmp_path / "a"), display)
    assert {steps // 2 for steps in display.steps.values()} >= {6, 2}  # of the grid's 96 images, and of the search


@pytest.mark.parametrize("stop", [1, 2])
def test_an_interrupted_sweep_resumes_to_the_same_numbers(tmp_path: Path, stop: int) -> None:
    config = replace(TINY, lr=(0.05,), arms=("none",), depth=(2,), largest_rate=True)
    undisturbed = run(replace(config, out=tmp_path / "undisturbed"))

    class Stopping(Recorder):
        """Stops in the search, at its second network."""

        def advance(self, name: str, share: float, text: str = "", *, lasting: bool = False) -> None:
            if lasting and name.startswith("stability") and "-lr0.1-" not in name and text.startswith(f"epoch {stop}/"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(config, out=tmp_path / "a"), Stopping())
    again = Recorder()
    resumed = run(SweepConfig(resume=tmp_path / "a"), again)
    assert [*map(without_times, resumed.cells)] == [*map(without_times, undisturbed.cells)]
    assert not any(" none-lr0.05-" in line or "lr0.1-" in line for line in again.begun)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("bn",)}, "--arms: no normalization is called 'bn'"),
        ({"lr": ()}, "--lr: at least one value"),
        ({"lr": (0.1, 0.1)}, "--lr: every value may appear once"),
        ({"lr": (0.1, -1.0)}, "--lr: a learning rate must be a positive number"),
        ({"batch_size": (64, 1)}, "--batch-size: must be at least 2, got 1"),
        ({"depth": (6, 2)}, "--depth: 3 stages need"),
        ({"epochs": 0}, "--epochs: must be at least 1"),
    ],
)
def test_a_configuration_that_makes_no_sweep_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(replace(SweepConfig(out=tmp_path / "a"), **changes))
    assert not (tmp_path / "a").exists()

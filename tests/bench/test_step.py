import json
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch

from steadynorm.bench import step
from steadynorm.bench.record import Json
from steadynorm.bench.step import BENCHMARK, StepFlags
from steadynorm.lab.normalizations import NORMALIZATIONS
from steadynorm.ops import reference
from tests.support.bench import Lines, let_kernels_be, times_as

TINY = StepFlags(networks=("resnet20",), batch=1, precision="fp32", seconds=1e-6)
"""So few values a layer that no kernels have to be compiled."""
MS = {"none": 4.0, "torch_batch_norm": 10.0, "batch_norm": 5.0}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let times and memory be as in ``MS``."""
    times_as(monkeypatch, step, MS)
    peaks = iter([1000, 4000, 3000])
    monkeypatch.setattr(step, "peak_bytes", lambda provider, device: next(peaks))


def measure(config: StepFlags = TINY) -> Json:
    return BENCHMARK.measure("resnet20", config, {"device": "cpu", "precision": "fp32"})


@pytest.mark.usefixtures("made_up")
def test_steps_are_compared_with_no_norm_and_with_torchs() -> None:
    row = measure()
    assert {norm: one["ms"]["median"] for norm, one in row["norms"].items()} == MS
    assert [one["over_none"] for one in row["norms"].values()] == [1.0, 2.5, 1.25]
    assert [one["peak_bytes"] for one in row["norms"].values()] == [1000, 4000, 3000]
    assert row["norms"]["none"]["samples"] == 3
    assert row["ours_over_torch"] == {"time": 0.5, "peak_bytes": 0.75}


@pytest.mark.usefixtures("made_up")
def test_what_is_not_measured_is_not_compared_with() -> None:
    row = measure(replace(TINY, norms=("batch_norm",)))
    assert row["norms"]["batch_norm"]["over_none"] is None
    assert (row["difference"], row["agrees"], row["ours_over_torch"]) == (None, True, None)


@pytest.mark.usefixtures("made_up")
def test_torchs_and_ours_alone_are_compared_too() -> None:
    row = measure(replace(TINY, norms=("torch_batch_norm", "batch_norm")))
    assert row["difference"] is not None
    assert row["ours_over_torch"] == {"time": 0.5, "peak_bytes": 4.0}  # peaks are made up in order


@pytest.mark.parametrize("kernel", ["transform", "transform_grad"])
def test_a_network_whose_losses_or_gradients_disagree_is_not_timed(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any) -> Any:
        results = getattr(reference, kernel)(*arguments)
        (results if isinstance(results, torch.Tensor) else results[0]).mul_(1.02)
        return results

    let_kernels_be(monkeypatch, **{kernel: wrong})
    monkeypatch.setattr(step, "time_providers", None)
    row = measure()
    assert (row["agrees"], row["norms"], row["ours_over_torch"]) == (False, {}, None)
    (line,) = BENCHMARK.lines(row)
    assert line.startswith("resnet20: disagrees: loss or gradients are off by 0.")
    assert BENCHMARK.disagreeing({"networks": [row]}) == ["resnet20"]


@pytest.mark.usefixtures("made_up")
def test_each_norm_is_a_line_and_the_comparison_another() -> None:
    assert BENCHMARK.lines(measure()) == [
        "resnet20  none                   4.00 ms (4.00-4.00)         1.00 of none  peak 0.0 MB",
        "resnet20  torch_batch_norm      10.00 ms (10.00-10.00)       2.50 of none  peak 0.0 MB",
        "resnet20  batch_norm             5.00 ms (5.00-5.00)         1.25 of none  peak 0.0 MB",
        "resnet20  ours over torch's: time 0.500, peak memory 0.750",
    ]


def test_the_norms_are_those_of_compare() -> None:
    assert set(get_args(step.Norm)) == set(NORMALIZATIONS)


def test_the_record_holds_every_network_really_timed() -> None:
    record = BENCHMARK.run(TINY, Lines())
    assert (record["bench"], record["complete"], record["precision"]) == ("step", True, "fp32")
    (row,) = json.loads(json.dumps(record))["networks"]
    assert row["agrees"] and 0 <= row["difference"] < 1e-3
    assert list(row["norms"]) == ["none", "torch_batch_norm", "batch_norm"]
    for one in row["norms"].values():
        assert one["samples"] == 7
        assert one["ms"]["median"] > 0 and one["peak_bytes"] > 0


def test_the_networks_are_measured_in_order() -> None:
    seen: list[Any] = []
    row = {"network": "made up", "agrees": True, "norms": {}, "ours_over_torch": None}
    made_up = replace(BENCHMARK, measure=lambda case, _, head: (seen.append((case, head["precision"])), row)[1])
    display = Lines()
    made_up.run(StepFlags(precision="bf16", device="cpu"), display)
    assert seen == [("cnn", "bf16"), ("resnet20", "bf16")]
    assert display.done == [("cnn", 1, 2), ("resnet20", 2, 2)]


def test_steps_that_are_watched_are_compared_with_those_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    times_as(monkeypatch, step, MS | {"batch_norm warn": 5.1, "batch_norm revert": 5.5})
    started, stopped = [], []
    monkeypatch.setattr(step.Watch, "start", lambda watch: started.append(watch.policy))
    monkeypatch.setattr(step.Watch, "stop", lambda watch: stopped.append(watch.policy))
    row = measure(replace(TINY, norms=("none", "batch_norm"), watch=True))
    assert row["norms"]["batch_norm warn"]["over_unwatched"] == pytest.approx(1.02)
    assert row["norms"]["batch_norm revert"]["over_unwatched"] == pytest.approx(1.1)
    assert set(row["norms"]) == {"none", "batch_norm", "batch_norm warn", "batch_norm revert"}
    assert started == stopped == ["warn", "revert"]
    assert "1.1000 of unwatched" in BENCHMARK.lines(row)[3]

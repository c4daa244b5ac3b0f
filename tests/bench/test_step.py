import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadynorm.bench import step
from steadynorm.bench.record import read_record
from steadynorm.bench.step import NetworkResult, StepConfig, measure_network, run
from steadynorm.bench.timing import Sample
from steadynorm.lab import machine
from steadynorm.lab.configuration import prepared
from steadynorm.lab.experiments.compare import CompareConfig
from steadynorm.lab.normalizations import NORMALIZATIONS
from steadynorm.ops import reference
from steadynorm.reporting.failure import UserError
from tests.support.bench import Lines, let_kernels_be

CPU = torch.device("cpu")
TINY = StepConfig(networks=("resnet20",), batch=1, precision="fp32", seconds=1e-6)
"""So few values a layer that no kernels have to be compiled."""
MS = {"none": 4.0, "torch_batch_norm": 10.0, "batch_norm": 5.0}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let times and memory be as in ``MS``."""
    monkeypatch.setattr(
        step,
        "interleave",
        lambda sides, clock, *, seconds: {name: [Sample(parts_ms=(MS[name],), host_ms=0.0)] * 3 for name in sides},
    )
    peaks = iter([1000, 4000, 3000])
    monkeypatch.setattr(step, "peak_bytes", lambda work, device: next(peaks))
    monkeypatch.setattr(step, "WARM_UP", 0)


def measure(config: StepConfig = TINY) -> NetworkResult:
    return measure_network("resnet20", config, CPU, "fp32")


@pytest.mark.usefixtures("made_up")
def test_steps_are_compared_with_no_norm_and_with_torchs() -> None:
    found = measure()
    assert {norm: one.ms.median for norm, one in found.norms.items()} == MS
    assert {norm: one.over_none for norm, one in found.norms.items()} == {
        "none": 1.0,
        "torch_batch_norm": 2.5,
        "batch_norm": 1.25,
    }
    assert {norm: one.peak_bytes for norm, one in found.norms.items()} == {
        "none": 1000,
        "torch_batch_norm": 4000,
        "batch_norm": 3000,
    }
    assert found.norms["none"].samples == 3
    assert found.ours_over_torch == {"time": 0.5, "peak_bytes": 0.75}


@pytest.mark.usefixtures("made_up")
def test_what_is_not_measured_is_not_compared_with() -> None:
    found = measure(replace(TINY, norms=("batch_norm",)))
    assert found.norms["batch_norm"].over_none is None
    assert (found.difference, found.agrees, found.ours_over_torch) == (None, True, None)


@pytest.mark.usefixtures("made_up")
def test_torchs_and_ours_alone_are_compared_too() -> None:
    found = measure(replace(TINY, norms=("torch_batch_norm", "batch_norm")))
    assert found.difference is not None
    assert found.ours_over_torch == {"time": 0.5, "peak_bytes": 4.0}  # peaks are made up in order


def test_the_steps_of_all_norms_are_timed_in_rounds() -> None:
    found = measure()
    assert {one.samples for one in found.norms.values()} == {7}
    assert all(one.ms.median > 0 and one.peak_bytes > 0 for one in found.norms.values())
    assert found.agrees
    assert found.difference is not None
    assert found.difference < 1e-3


@pytest.mark.parametrize("kernel", ["transform", "transform_grad"])
def test_a_network_whose_losses_or_gradients_disagree_is_not_timed(
    kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any) -> Any:
        results = getattr(reference, kernel)(*arguments)
        (results if isinstance(results, torch.Tensor) else results[0]).mul_(1.02)
        return results

    let_kernels_be(monkeypatch, **{kernel: wrong})
    monkeypatch.setattr(step, "interleave", None)
    found = measure()
    assert (found.agrees, found.norms, found.ours_over_torch) == (False, {}, None)
    (line,) = step.network_lines(found)
    assert line.startswith("resnet20: disagrees: loss or gradients are off by 0.")


def test_a_difference_that_is_not_finite_is_infinite() -> None:
    assert step._difference((1.0, 1.0), (float("nan"), 1.0)) == float("inf")
    assert step._difference((1.0, 4.0), (1.1, 5.0)) == pytest.approx(0.25)


@pytest.mark.usefixtures("made_up")
def test_each_norm_is_a_line_and_the_comparison_another() -> None:
    assert step.network_lines(measure()) == [
        "resnet20  none                   4.00 ms (4.00-4.00)         1.00 of none  peak 0.0 MB",
        "resnet20  torch_batch_norm      10.00 ms (10.00-10.00)       2.50 of none  peak 0.0 MB",
        "resnet20  batch_norm             5.00 ms (5.00-5.00)         1.25 of none  peak 0.0 MB",
        "resnet20  ours over torch's: time 0.500, peak memory 0.750",
    ]


def test_a_step_is_forward_loss_backward_and_update_between_two_marks() -> None:
    x, labels = step._draw_batch(2, CPU)
    model, twin = (step._build("resnet20", "none", CPU) for _ in range(2))
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    marks: list[None] = []
    take_step = step._make_step(model, x, labels, "fp32")
    for _ in range(2):
        take_step(lambda: marks.append(None))
        optimizer.zero_grad()
        F.cross_entropy(twin(x), labels).backward()
        optimizer.step()
    assert len(marks) == 4
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_step_computes_in_the_precision_that_is_asked_for(precision: Any, dtype: torch.dtype) -> None:
    model = step._build("resnet20", "none", CPU)
    seen = []
    model.conv.register_forward_hook(lambda module, inputs, y: seen.append((y.dtype, y.stride()[1])))  # type: ignore[union-attr]
    step._make_step(model, *step._draw_batch(2, CPU), precision)(lambda: None)
    assert seen == [(dtype, 1)]  # and in channels-last


def test_the_batch_is_of_the_size_that_is_asked_for() -> None:
    x, labels = step._draw_batch(5, CPU)
    assert x.shape == (5, 3, 32, 32)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (5,)


def test_sides_start_from_the_same_weights_in_training_mode() -> None:
    ours, native = (step._build("resnet20", norm, CPU) for norm in ("batch_norm", "torch_batch_norm"))
    assert torch.equal(ours.conv.weight, native.conv.weight)  # type: ignore[union-attr, arg-type]
    assert ours.training


def test_the_networks_are_those_of_compare() -> None:
    config = prepared(CompareConfig(data="cifar10"), {})
    assert (config.depth, config.widths) == (step.DEPTH, step.WIDTHS)
    assert (config.momentum, config.weight_decay) == (step.MOMENTUM, step.WEIGHT_DECAY)


def test_the_norms_are_those_of_compare() -> None:
    assert set(get_args(step.Norm)) == set(NORMALIZATIONS)


def test_sides_are_warmed_up_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    make, interleave = step._make_step, step.interleave

    def noting(model: nn.Module, *rest: Any) -> Callable[..., None]:
        right = make(model, *rest)
        return lambda mark: (order.append("step"), right(mark))[1]

    monkeypatch.setattr(step, "_make_step", noting)
    monkeypatch.setattr(step, "interleave", lambda *a, **b: (order.append("timed"), interleave(*a, **b))[1])
    measure(replace(TINY, norms=("none",)))
    assert order[:4] == ["step"] * 3 + ["timed"]


def fake_measurements(monkeypatch: pytest.MonkeyPatch, *, stop_at: str | None = None) -> list[tuple[Any, ...]]:
    seen: list[tuple[Any, ...]] = []

    def fake(network: str, config: StepConfig, device: torch.device, precision: str) -> NetworkResult:
        if network == stop_at:
            raise KeyboardInterrupt
        seen.append((network, device, precision))
        return NetworkResult(network=network, difference=None, agrees=True, norms={}, ours_over_torch=None)

    monkeypatch.setattr(step, "measure_network", fake)
    return seen


def test_the_record_holds_every_network() -> None:
    record = run(TINY, Lines())
    assert (record["bench"], record["complete"], record["precision"]) == ("step", True, "fp32")
    (network,) = json.loads(json.dumps(record))["networks"]
    assert network["network"] == "resnet20"
    assert set(network["norms"]) == {"none", "torch_batch_norm", "batch_norm"}
    assert network["norms"]["batch_norm"]["ms"]["median"] > 0


def test_the_networks_are_measured_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake_measurements(monkeypatch)
    display = Lines()
    run(StepConfig(precision="bf16", device="cpu"), display)
    assert seen == [("cnn", CPU, "bf16"), ("resnet20", CPU, "bf16")]
    assert display.done == [("cnn", 1, 2), ("resnet20", 2, 2)]


@pytest.mark.usefixtures("made_up")
def test_the_lines_of_each_network_are_shown() -> None:
    display = Lines()
    run(TINY, display)
    assert [line.split()[1] for line in display.lines] == ["none", "torch_batch_norm", "batch_norm", "ours"]


def test_the_number_of_threads_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_measurements(monkeypatch)
    threads = torch.get_num_threads() + 1
    monkeypatch.setattr(machine, "count_cores", lambda: threads)
    assert run(replace(TINY, threads=threads), Lines())["threads"] == threads == torch.get_num_threads()


def test_an_interrupted_run_writes_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_measurements(monkeypatch, stop_at="resnet20")
    with pytest.raises(KeyboardInterrupt):
        run(StepConfig(out=tmp_path), Lines())
    (path,) = tmp_path.iterdir()
    record = read_record(path)
    assert (record["complete"], [one["network"] for one in record["networks"]]) == (False, ["cnn"])


def test_a_run_that_is_interrupted_at_once_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_measurements(monkeypatch, stop_at="cnn")
    with pytest.raises(KeyboardInterrupt):
        run(StepConfig(out=tmp_path), Lines())
    assert list(tmp_path.iterdir()) == []


def test_what_measures_nothing_is_refused_first() -> None:
    with pytest.raises(UserError, match="--networks"):
        run(StepConfig(networks=()), Lines())

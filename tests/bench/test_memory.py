import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steadynorm.bench.memory import peak_bytes, saved_bytes
from steadynorm.bench.providers import forward_backward, make_inputs, our_module, torch_module
from steadynorm.bench.timing import Mark
from tests.support.bench import SMALL_CASE, let_kernels_be

CPU = torch.device("cpu")
PER_CHANNEL = 16 * 128 * 4
"""More than the tensors of shape (C,) that a layer makes."""


def test_the_peak_is_the_most_that_is_held_at_a_time() -> None:
    def work(mark: Mark) -> None:
        first = torch.empty(1000)
        del first
        second, third = torch.empty(500), torch.empty(700)
        del second, third

    assert peak_bytes(work, CPU) == 4 * 1200


def test_what_was_held_before_does_not_count() -> None:
    held = torch.empty(5000)
    assert peak_bytes(lambda mark: held.add_(1), CPU) < 4000


def test_the_profiler_does_not_speak(capfd: pytest.CaptureFixture[str]) -> None:
    peak_bytes(lambda mark: torch.empty(10), CPU)
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


def test_what_goes_wrong_is_raised_and_standard_error_comes_back(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(mark: Mark) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        peak_bytes(fail, CPU)
    os.write(2, b"afterwards")
    assert capfd.readouterr().err.endswith("afterwards")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_peak_on_a_gpu_is_above_what_was_held() -> None:
    device = torch.device("cuda")
    held = torch.empty(1 << 20, device=device)
    assert peak_bytes(lambda mark: torch.empty(1 << 18, device=device).add_(held[0]), device) == 4 << 18


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not list open files")
def test_no_file_stays_open() -> None:
    peak_bytes(lambda mark: None, CPU)
    before = len(list(Path("/proc/self/fd").iterdir()))
    peak_bytes(lambda mark: None, CPU)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_peak_on_a_gpu_is_of_the_work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    held, most = iter([100]), iter([350])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: log.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(held))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: (log.append("peak"), next(most))[1])
    assert peak_bytes(lambda mark: log.append("work"), torch.device("cuda")) == 250
    assert log == ["wait", "reset", "work", "wait", "peak"]


def test_torchs_layer_keeps_x_and_a_second_tensor() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU)
    module = torch_module(SMALL_CASE)
    saved = saved_bytes(module, inputs)
    # The rectified output, mean and 1/std; x, weight and the running statistics that batch norm may read.
    assert 0 <= saved["new_bytes"] - SMALL_CASE.x_bytes <= PER_CHANNEL
    assert 0 <= saved["given_bytes"] - SMALL_CASE.x_bytes <= PER_CHANNEL


def test_our_layer_keeps_nothing_of_the_size_of_x_but_what_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    let_kernels_be(monkeypatch)
    case = replace(SMALL_CASE, op="norm_relu_residual")
    (inputs,) = make_inputs(case, CPU)
    saved = saved_bytes(our_module(case), inputs)
    assert 0 < saved["new_bytes"] <= PER_CHANNEL
    assert 0 <= saved["given_bytes"] - 2 * case.x_bytes <= PER_CHANNEL


def test_a_storage_that_is_kept_twice_counts_once() -> None:
    class Square(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            doubled = x * 2
            return doubled * doubled.view_as(doubled)

    (inputs,) = make_inputs(SMALL_CASE, CPU)
    assert saved_bytes(Square(), inputs)["new_bytes"] == SMALL_CASE.x_bytes


def test_forward_and_backward_of_torchs_layers_hold_output_gradient_and_one_more() -> None:
    (inputs,) = make_inputs(SMALL_CASE, CPU)
    provider = forward_backward(torch_module(SMALL_CASE), itertools.repeat(inputs))
    provider(lambda: None)
    peak = peak_bytes(provider, CPU)
    assert peak >= 3 * SMALL_CASE.x_bytes

"""The CPU kernels against the same oracle as the reference, and what only they can get wrong."""

import logging
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numba import njit

from steadynorm.ops import _numba, _numba_kernels, _numba_layout, _numba_simd, _numba_threads, _numba_types, reference
from tests.support import oracle
from tests.support.cases import CASES, FAULTY_CASES, LONG_CASES, Case, each_compiled, make_inputs
from tests.support.kernels import assert_kernels_are_as_accurate_as_torchs, gradients_by_kernels

SUPPORTED = [case for case in (*CASES, *LONG_CASES) if _numba.unsupported_reason(make_inputs(case).x) is None]


def test_all_of_the_case_table_but_float64_is_supported():
    assert {case.id for case in CASES} - {case.id for case in SUPPORTED} == {"float64"}


@each_compiled
def test_all_is_as_accurate_as_torchs(case, activation, with_residual):
    inputs = make_inputs(case)
    assert_kernels_are_as_accurate_as_torchs(_numba, inputs, inputs.residual if with_residual else None, activation)


@pytest.mark.parametrize("case", FAULTY_CASES, ids=lambda case: case.id)
def test_a_value_that_is_no_number_corrupts_its_own_channel_only(case):
    inputs = make_inputs(case)
    results = gradients_by_kernels(_numba, inputs, inputs.residual, "relu")
    finite = results["dx"].isfinite().transpose(0, 1).flatten(1)
    assert finite[0].all() and finite[2].all()
    assert not finite[1].any()


@pytest.mark.parametrize("case", [LONG_CASES[0], LONG_CASES[3]], ids=lambda case: case.id)
def test_tensors_of_other_layouts_beside_x_are_read_where_they_belong(case):
    inputs = make_inputs(case)
    numbers = [torch.rand(inputs.x.shape[1]) for _ in range(6)]
    dy, residual = (tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in (inputs.dy, inputs.residual))
    ours = _numba.transform_grad(dy, inputs.x, *numbers[:3], residual, "relu", *numbers[3:])
    expected = reference.transform_grad(dy, inputs.x, *numbers[:3], residual, "relu", *numbers[3:])
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == inputs.x.stride()


@pytest.mark.parametrize("kernels", [_numba, reference], ids=["numba", "reference"])
@pytest.mark.parametrize("case", FAULTY_CASES, ids=lambda case: case.id)
def test_moments_of_what_is_no_number_are_torchs(case, kernels):
    x = make_inputs(case).x
    expected = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    F.batch_norm(x, *expected, training=True, momentum=1.0)
    count = x.numel() / x.shape[1]
    mean, var = kernels.moments(x)
    torch.testing.assert_close((mean, var * count / (count - 1)), expected, equal_nan=True)


def test_kernels_change_none_of_their_arguments():
    inputs = make_inputs(LONG_CASES[3])
    copies = {name: getattr(inputs, name).clone() for name in ("x", "dy", "residual", "weight", "bias")}
    gradients_by_kernels(_numba, inputs, inputs.residual, "relu")
    assert all(torch.equal(copies[name], getattr(inputs, name)) for name in copies)


def through_memory(values, dtype):
    """Write float32 numbers as a dtype, sixteen at a time, and read them back."""

    @njit
    def run(values, stored, back):
        for at in range(0, values.size, _numba_simd.LANES):
            _numba_simd.store(stored, at, _numba_simd.load(values, at))
            _numba_simd.store(back, at, _numba_simd.load(stored, at))

    stored, back = np.empty(values.size, dtype), np.empty(values.size, np.float32)
    run(values, stored, back)
    return back


@pytest.mark.parametrize("native", [False, True], ids=["by-integers", "by-instruction"])
def test_bfloat16_is_rounded_as_torch_rounds_it(native, monkeypatch):
    """A million random bit patterns: infinite, NaN and ties among them. An instruction takes subnormals for 0."""
    if native and not _numba_simd.has_feature("avx512bf16"):
        pytest.skip("the processor has no instruction for it")
    monkeypatch.setattr(_numba_simd, "has_feature", lambda name: native)
    patterns = np.random.default_rng(0).integers(0, 2**32, 2**20, dtype=np.uint32)
    patterns[: 2**16] = (patterns[: 2**16] & 0xFFFF0000) | 0x8000  # ties
    patterns[:4] = (0x7F800000, 0xFF800000, 0x7FC00000, 0x00000001)
    values = patterns.view(np.float32)
    if native:
        values = np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    assert np.array_equal(through_memory(values, np.uint16), expected, equal_nan=True)


def test_float16_is_rounded_as_torch_rounds_it():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):  # infinities of both signs, and NaN that signals
        ties = (halves[:-1] + halves[1:]) / 2
        values = np.concatenate([halves, ties, np.random.default_rng(0).normal(0, 1e4, 2**16 + 1)]).astype(np.float32)
    expected = torch.from_numpy(values).half().float().numpy()
    assert np.array_equal(through_memory(values, np.int16), expected, equal_nan=True)


def test_exp_is_exact_to_three_units_in_the_last_place():
    x = np.linspace(-87, 88.3, 2**20, dtype=np.float32)
    exp = _numba_types.exp

    @njit
    def run(x, y):
        for at in range(0, x.size, _numba_simd.LANES):
            _numba_simd.store(y, at, exp(_numba_simd.load(x, at)))

    y = np.empty_like(x)
    run(x, y)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(y - exact) / exact).max() < 3 * 2.0**-23
    x[:16] = [-np.inf, -1e30, -200, -88, 0, 88.8, 89, 100, 1e30, np.inf, np.nan, 1, -1, 0.5, -0.5, 2]
    run(x[:16], y[:16])
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(y[:16], np.exp(x[:16]), rtol=1e-6, atol=2e-38)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("first", [1e4, -1e4, float("inf")])
def test_moments_do_not_hang_on_the_values_that_are_met_first(first, layout):
    """The first guess of the mean is one of many positions; where it is far off, the sums are taken again."""
    x = torch.randn(8, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 1e-2 + 1
    x[0], x[4] = first, first if first < 1e9 else 1.0
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    for ours, expected in zip(_numba.moments(x), reference.moments(x), strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True)


@pytest.mark.parametrize("layout", ["planes", "rows"])
def test_one_far_value_where_the_mean_is_guessed_costs_no_digits(layout):
    """The guess is then thousands of standard deviations off, and the sums are taken again about the mean."""
    x = torch.randn(2, 2**18, generator=torch.Generator().manual_seed(0)) + 1
    x = x.view(2, 2, -1).transpose(0, 1).contiguous() if layout == "planes" else x.T.contiguous()
    if layout == "planes":
        x[0, :, (x.shape[2] - 16) // 2] = 1e5
    else:
        x[0] = 1e5
    _, var = _numba.moments(x)
    np.testing.assert_allclose(var, oracle.batch_norm(x).var, rtol=1e-6)


def test_a_wide_result_is_written_past_the_caches(monkeypatch):
    """Streaming needs lines and memory that end where a cache's do; the numbers are the same."""
    monkeypatch.setattr(_numba, "STREAM", 0)
    for case in (Case(id="rows", shape=(5, 32, 3, 7), layout="channels_last"), Case(id="planes", shape=(3, 5, 8, 4))):
        for dtype in (torch.float32, torch.bfloat16):
            inputs = make_inputs(Case(id=case.id, shape=case.shape, layout=case.layout, dtype=dtype))
            layout = _numba._laid_out(inputs.x)[1]
            assert _numba._streams(layout, inputs.x, None)
            assert not _numba._streams(layout, torch.empty(65)[1:])
            assert_kernels_are_as_accurate_as_torchs(_numba, inputs, None, "relu")
    assert not _numba._streams(_numba_layout.Planes(5, 31), inputs.x)


def test_thread_counts_of_torch_and_numba_stay_as_they_were():
    before = torch.get_num_threads(), numba.get_num_threads()
    inputs = make_inputs(LONG_CASES[0])
    torch.set_num_threads(1)
    gradients_by_kernels(_numba, inputs, None, "relu")
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before[0])
    assert (torch.get_num_threads(), numba.get_num_threads()) == before


def test_the_kernels_follow_the_number_of_torchs_threads(monkeypatch):
    used = []
    monkeypatch.setattr(_numba_threads.numba, "set_num_threads", used.append)
    monkeypatch.setattr(_numba_threads.numba, "get_num_threads", lambda: 2)
    monkeypatch.setattr(_numba_threads.torch, "get_num_threads", lambda: 1)
    _numba.moments(make_inputs(LONG_CASES[0]).x)
    assert used == [1, 2]


def test_another_thread_gets_the_same_numbers():
    inputs = make_inputs(LONG_CASES[3])
    here = gradients_by_kernels(_numba, inputs, None, "relu")
    there = {}
    worker = threading.Thread(target=lambda: there.update(gradients_by_kernels(_numba, inputs, None, "relu")))
    worker.start()
    worker.join()
    assert all(torch.equal(here[name], there[name]) for name in ("dx", "dweight", "dbias"))


def test_another_default_dtype_of_torch_compiles_no_other_kernel():
    x = make_inputs(LONG_CASES[0]).x
    _numba.moments(x)
    before = list(_numba_kernels.moments.signatures)
    torch.set_default_dtype(torch.float64)
    try:
        mean, _ = _numba.moments(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert _numba_kernels.moments.signatures == before
    assert mean.dtype == torch.float32


def test_two_calls_give_the_same_bits():
    inputs = make_inputs(LONG_CASES[0])
    first, second = (gradients_by_kernels(_numba, inputs, None, "relu") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in ("dx", "dweight", "dbias"))


TRAIN = """
import os, sys, threading, torch, steadynorm
from steadynorm.ops import _numba
x = torch.randn(16, 8, 32, 32, requires_grad=True)
layer = steadynorm.BatchNorm2d(8, activation="relu")
def train():
    with steadynorm.backend("numba"):
        layer(x).square().sum().backward()
"""


def run_python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", TRAIN + code], env=os.environ | environment, capture_output=True, text=True, timeout=250
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_one_thread_by_environment_is_enough():
    assert run_python("train(); print(torch.get_num_threads())", OMP_NUM_THREADS="1") == "1\n"


def test_kernels_run_in_a_thread_and_change_no_thread_count():
    code = """
before = torch.get_num_threads()
worker = threading.Thread(target=train); worker.start(); worker.join(); train()
print(before == torch.get_num_threads(), x.grad is not None)
"""
    assert run_python(code) == "True True\n"


def test_a_forked_child_trains_by_torchs_kernel():
    """GNU OpenMP ends a child that starts threads where its parent had some."""
    code = """
train()
x = torch.randn(64, 8, 64, 64)
here = steadynorm.ops.dispatch.explain_backend(x).backend
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # as the workers of a DataLoader do: torch's own threads do not survive a fork either
    choice = steadynorm.ops.dispatch.explain_backend(x)
    layer(x)
    print(here, choice.backend, "forked" in choice.reason, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    assert run_python(code) == "numba torch True\n"


def test_a_spawned_child_runs_the_kernels(tmp_path):
    script = tmp_path / "spawning.py"
    script.write_text(
        TRAIN
        + """
import multiprocessing
if __name__ == "__main__":
    train()
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=train); child.start(); child.join()
    print(child.exitcode)
"""
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=250)
    assert result.stdout == "0\n", result.stderr


@pytest.mark.slow
def test_a_later_process_compiles_nothing_and_the_first_one_says_so_once(tmp_path):
    code = """
import logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
train()
from steadynorm.ops import _numba_kernels as kernels
print(sum(len(f.stats.cache_misses) for f in (kernels.normalize, kernels.normalize_grad)))
"""
    first, later = (run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).splitlines() for _ in range(2))
    assert (len(first), first[-1], later) == (2, "2", ["0"])
    assert first[0].startswith("compiling the CPU kernels for this machine")


@pytest.mark.parametrize(("terminal", "level"), [(True, logging.WARNING), (False, logging.INFO)])
def test_who_works_at_a_terminal_sees_that_kernels_are_compiled(terminal, level, monkeypatch, caplog):
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal))
    started = SimpleNamespace(data={"dispatcher": _numba_kernels.normalize})
    say = _numba._SayOnce()
    with caplog.at_level(logging.INFO, "steadynorm"):
        say.on_start(started)
        say.on_start(started)
    (record,) = caplog.records
    assert record.levelno == level and "steadynorm warmup" in record.getMessage()


@pytest.mark.slow
def test_no_place_to_keep_compiled_code_is_no_error():
    locked = "import numba.core.caching as c; c.CacheImpl._locator_classes = []\n"
    result = subprocess.run(
        [sys.executable, "-c", locked + TRAIN + "train(); print(x.grad is not None)"],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert result.stdout == "True\n", result.stderr

"""The CPU kernels against the same oracle as the reference, and what only they can get wrong."""

import threading

import numba
import numpy as np
import pytest
import torch
from numba import njit

from steadynorm.ops import _numba, reference
from tests.support.cases import CASES, FAULTY_CASES, Case, make_inputs
from tests.support.kernels import assert_kernels_are_as_accurate_as_torchs, gradients_by_kernels

# Beyond one run of float32 sums, and with rows that do not divide evenly among the threads.
LONG = (
    Case(id="long-planes", shape=(3, 5, 41, 43)),
    Case(id="long-planes-bfloat16", shape=(3, 5, 41, 43), dtype=torch.bfloat16),
    Case(id="long-rows", shape=(5, 17, 31, 7), layout="channels_last"),
    Case(id="long-rows-bfloat16", shape=(5, 17, 31, 7), layout="channels_last", dtype=torch.bfloat16),
)
SUPPORTED = [case for case in (*CASES, *LONG) if _numba.supports(make_inputs(case).x)]
each_supported_case = pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.id)


def test_most_of_the_case_table_is_supported():
    names = {case.id for case in SUPPORTED}
    assert {"large-mean", "2d", "5d", "channels-last-2d", "channels-last-3d", "bfloat16-channels-last"} <= names
    assert {case.id for case in CASES} - names == {"transposed", "sliced", "expanded", "float64", "float16"}


@each_supported_case
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
def test_relu_is_as_accurate_as_torchs(case, with_residual):
    inputs = make_inputs(case)
    residual = inputs.residual if with_residual else None
    assert_kernels_are_as_accurate_as_torchs(_numba, inputs, residual, "relu")


@pytest.mark.parametrize("activation", [None, "leaky_relu", "silu"])
@pytest.mark.parametrize("case", [LONG[0], LONG[3]], ids=lambda case: case.id)
def test_every_activation_is_as_accurate_as_torchs(case, activation):
    inputs = make_inputs(case)
    assert_kernels_are_as_accurate_as_torchs(_numba, inputs, inputs.residual, activation)


@pytest.mark.parametrize("case", FAULTY_CASES, ids=lambda case: case.id)
def test_a_value_that_is_no_number_spoils_its_own_channel_only(case):
    results = gradients_by_kernels(_numba, make_inputs(case), None, "relu")
    finite = results["dx"].isfinite().transpose(0, 1).flatten(1)
    assert finite[0].all() and finite[2].all()
    assert not finite[1].any()


@pytest.mark.parametrize("case", [LONG[0], LONG[3]], ids=lambda case: case.id)
def test_tensors_of_other_layouts_beside_x_are_read_where_they_belong(case):
    inputs = make_inputs(case)
    numbers = [torch.rand(inputs.x.shape[1]) for _ in range(6)]
    dy, residual = (tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in (inputs.dy, inputs.residual))
    ours = _numba.transform_grad(dy, inputs.x, *numbers[:3], residual, "relu", *numbers[3:])
    expected = reference.transform_grad(dy, inputs.x, *numbers[:3], residual, "relu", *numbers[3:])
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == inputs.x.stride()


def test_kernels_change_none_of_their_arguments():
    inputs = make_inputs(LONG[3])
    copies = {name: getattr(inputs, name).clone() for name in ("x", "dy", "residual", "weight", "bias")}
    gradients_by_kernels(_numba, inputs, inputs.residual, "relu")
    assert all(torch.equal(copies[name], getattr(inputs, name)) for name in copies)


def convert(half, values):
    read, write = _numba._access(half)

    @njit
    def run(values, bits, back):
        for i in range(values.size):
            bits[i] = write(values[i])
            back[i] = read(bits[i])

    bits, back = np.empty(values.size, np.uint16), np.empty(values.size, np.float32)
    run(values, bits, back)
    return bits, back


def test_bfloat16_is_rounded_as_torch_rounds_it():
    """A million random bit patterns: subnormal, infinite, NaN and ties among them."""
    patterns = np.random.default_rng(0).integers(0, 2**32, 2**20, dtype=np.uint32)
    patterns[: 2**16] = (patterns[: 2**16] & 0xFFFF0000) | 0x8000  # ties
    patterns[:4] = (0x7F800000, 0xFF800000, 0x7FC00000, 0x00000001)
    values = patterns.view(np.float32)
    _, back = convert(True, values)
    expected = torch.from_numpy(values).bfloat16().float().numpy()
    assert np.array_equal(back, expected, equal_nan=True)


def test_thread_counts_of_torch_and_numba_stay_as_they_were():
    before = torch.get_num_threads(), numba.get_num_threads()
    inputs = make_inputs(LONG[0])
    try:
        torch.set_num_threads(1)
        gradients_by_kernels(_numba, inputs, None, "relu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before[0])
    assert (torch.get_num_threads(), numba.get_num_threads()) == before


def test_the_kernels_follow_the_number_of_torchs_threads(monkeypatch):
    used = []
    monkeypatch.setattr(_numba.numba, "set_num_threads", used.append)
    monkeypatch.setattr(_numba.torch, "get_num_threads", lambda: 1)
    _numba.moments(make_inputs(LONG[0]).x)
    assert used == [1, numba.get_num_threads()]


def test_another_thread_gets_the_same_numbers():
    inputs = make_inputs(LONG[3])
    here = gradients_by_kernels(_numba, inputs, None, "relu")
    there = {}
    worker = threading.Thread(target=lambda: there.update(gradients_by_kernels(_numba, inputs, None, "relu")))
    worker.start()
    worker.join()
    assert all(torch.equal(here[name], there[name]) for name in ("dx", "dweight", "dbias"))


def test_another_default_dtype_of_torch_compiles_no_other_kernel():
    x = make_inputs(LONG[0]).x
    _numba.moments(x)
    kernel = _numba._moments_kernel(*_numba._kind(x))
    before = list(kernel.signatures)
    torch.set_default_dtype(torch.float64)
    try:
        _numba.moments(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert kernel.signatures == before


def test_two_calls_give_the_same_bits():
    inputs = make_inputs(LONG[0])
    first, second = (gradients_by_kernels(_numba, inputs, None, "relu") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in ("dx", "dweight", "dbias"))

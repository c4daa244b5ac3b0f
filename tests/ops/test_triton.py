"""The GPU kernels against the same oracle as the reference, and what only they can get wrong.

Without a GPU Triton's interpreter runs them. It has to be chosen before Triton is imported, and for a whole process.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from steadynorm.ops import reference
from tests.support.cases import CASES, FAULTY_CASES, Case, make_inputs
from tests.support.kernels import assert_kernels_are_as_accurate_as_torchs, gradients_by_kernels

HAS_GPU = torch.cuda.is_available()
assert HAS_GPU or os.environ.get("TRITON_INTERPRET") == "1" or "triton" not in sys.modules, (
    "A test module has imported Triton, by way of torch._dynamo perhaps. Import it inside the test."
)
with mock.patch.dict(os.environ, {} if HAS_GPU else {"TRITON_INTERPRET": "1"}):
    pytest.importorskip("triton", reason="Triton has no package for this platform")
    from steadynorm.ops import _triton

KERNELS = ("moments", "transform", "transform_sums", "transform_grad")
UNSUPPORTED = {"transposed", "sliced", "expanded", "float64"}
PLANES = Case(id="planes", shape=(4, 5, 6, 8))
ROWS = Case(id="rows", shape=(4, 13, 5, 7), layout="channels_last", dtype=torch.bfloat16)
# Each way to place tiles; cut small they take several of them in every direction, and the last ones are not full.
SMALL_CUT = (
    Case(id="runs-of-16", shape=(5, 3, 6, 8)),
    Case(id="runs-of-4", shape=(5, 3, 6, 6)),
    Case(id="odd-planes", shape=(5, 3, 7, 5)),
    Case(id="short-planes", shape=(21, 7, 3)),
    Case(id="rows", shape=(3, 13, 7, 3), layout="channels_last"),
    Case(id="one-channel", shape=(5, 1, 9, 7)),
    Case(id="runs-of-16-bfloat16", shape=(5, 3, 6, 8), dtype=torch.bfloat16),
    Case(id="short-planes-bfloat16", shape=(37, 7, 3), dtype=torch.bfloat16),
    Case(id="rows-bfloat16", shape=(5, 13, 7, 3), layout="channels_last", dtype=torch.bfloat16),
)
SUPPORTED = [case for case in CASES if case.id not in UNSUPPORTED]


def by_id(case):
    return case.id


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(HAS_GPU, reason="where a GPU is, nothing is interpreted")),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no GPU")]),
    ]
)
def device(request, monkeypatch) -> Iterator[str]:
    """Where the kernels run. NumPy, which interprets them, warns of what is no number; a GPU does not."""
    if request.param == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    with np.errstate(all="ignore"):
        yield request.param


@pytest.fixture
def kernels(device):
    """The kernels for tensors on the CPU, wherever they run."""

    def on_device(kernel):
        def run(*arguments):
            moved = (value.to(device) if isinstance(value, torch.Tensor) else value for value in arguments)
            results = kernel(*moved)
            if isinstance(results, torch.Tensor):
                return results.cpu()
            return tuple(None if result is None else result.cpu() for result in results)

        return run

    return SimpleNamespace(**{name: on_device(getattr(_triton, name)) for name in KERNELS})


@pytest.fixture
def small_blocks(monkeypatch):
    for name, value in {
        "SUMS_BYTES": 128,
        "VALUES_BYTES": 64,
        "WIDTHS": (8,),
        "MANY_IMAGES": 20,
        "STEPS": 2,
        "MERGED": 32,
        "_programs_at_once": lambda device: 9,
    }.items():
        monkeypatch.setattr(_triton, name, value)


@pytest.mark.parametrize("case", CASES, ids=by_id)
def test_dense_tensors_of_up_to_32_bits_are_supported(case, device):
    inputs = make_inputs(case)
    assert (_triton.unsupported_reason(inputs.x.to(device), inputs.dy, None) is None) == (case.id not in UNSUPPORTED)


@pytest.mark.parametrize(
    ("x", "others", "unsupported_reason"),
    [
        (torch.zeros(2, 3, 4).to("meta"), (), "it is not a dense tensor in the memory of a GPU"),
        (torch.zeros(2, 3, 4, dtype=torch.int32), (), "torch.int32 is not float32, bfloat16 or float16"),
        (torch.zeros(2, 3, 4), (None, torch.zeros(2, 3, 4).half()), "the tensors differ in dtype"),
        (torch.zeros(4, 3, 2, 5).mT, (), "it is neither contiguous nor channels-last"),
        (torch.zeros(0, 3, 4), (), "it is empty or has no channels"),
    ],
    ids=["meta", "integers", "other-dtype", "strided", "empty"],
)
def test_what_stands_against_other_tensors_is_said(device, x, others, unsupported_reason):
    assert _triton.unsupported_reason(x if x.is_meta else x.to(device), *others) == unsupported_reason


@pytest.mark.parametrize(("name", "limit"), [("MOST_VALUES", 24), ("MOST_PER_CHANNEL", 8)])
def test_tensors_whose_rows_32_bits_cannot_number_are_not_supported(monkeypatch, device, name, limit):
    x = torch.zeros(2, 3, 4, device=device)
    monkeypatch.setattr(_triton, name, limit + 1)
    assert _triton.unsupported_reason(x) is None
    monkeypatch.setattr(_triton, name, limit)
    assert _triton.unsupported_reason(x) == "it has too many values for row indices of 32 bits"


@pytest.mark.parametrize("case", SUPPORTED, ids=by_id)
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
def test_relu_is_as_accurate_as_torchs(kernels, case, with_residual):
    inputs = make_inputs(case)
    residual = inputs.residual if with_residual else None
    assert_kernels_are_as_accurate_as_torchs(kernels, inputs, residual, "relu")


@pytest.mark.parametrize("activation", [None, "leaky_relu", "silu"])
@pytest.mark.parametrize("case", [PLANES, ROWS], ids=by_id)
def test_every_activation_is_as_accurate_as_torchs(kernels, case, activation):
    inputs = make_inputs(case)
    assert_kernels_are_as_accurate_as_torchs(kernels, inputs, inputs.residual, activation)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("case", SMALL_CUT, ids=by_id)
def test_many_tiles_are_as_accurate_as_torchs(kernels, case):
    inputs = make_inputs(case)
    assert_kernels_are_as_accurate_as_torchs(kernels, inputs, inputs.residual, "relu")


@pytest.mark.usefixtures("small_blocks")
def test_small_blocks_cut_everything_in_every_direction():
    ways = set()
    for case in SMALL_CUT:
        x = make_inputs(case).x
        sums, values = _triton._cut_for_sums(x), _triton._cut_for_values(x)
        assert sums.shares > 1 and sums.tiles > sums.shares
        assert sums.programs > sums.shares or case.shape[1] == 1
        assert values.programs > values.across > 1 or values.in_runs
        ways |= {("sums", sums.planes, sums.block_columns), ("values", values.in_runs, values.steps)}
    assert ways == {
        *(("sums", True, width) for width in (1, 4, 16)),
        ("sums", False, 8),
        *(("values", in_runs, steps) for in_runs, steps in ((True, 1), (False, 1), (False, 2))),
    }


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("case", SMALL_CUT[:5], ids=by_id)
@pytest.mark.parametrize("blank", [False, True], ids=["", "first-image-blank"])
def test_variance_keeps_its_digits_where_the_mean_is_large(kernels, case, blank):
    x = torch.randn(case.shape, generator=torch.Generator().manual_seed(3)) + 1e5
    if blank:
        x[0] = 0
    x = x.to(memory_format=torch.channels_last) if case.layout == "channels_last" else x
    mean, var = kernels.moments(x)
    exact = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), exact.var(1, correction=0), rtol=2e-6, atol=0)


def test_rounding_cannot_make_a_variance_negative(device):
    """Three values whose sum is 3, but whose squares were added up to a little less than 3."""
    center, total, squares = (torch.tensor([number], device=device) for number in (0.0, 3.0, 2.99))
    mean, var = torch.empty(2, 1, device=device)
    blocks = {"WIDTH": 1, "BLOCK_ROWS": 4, "HEIGHT": 1, "LENGTH": 1}
    merge = _triton.kernels.merge_moments
    _triton._launch(merge, 1, center, total, squares, mean, var, 1, 1, 1, 1, 1, **blocks)
    assert (mean.item(), var.item()) == (1, 0)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("case", SMALL_CUT[:5], ids=by_id)
def test_what_a_tile_has_beyond_the_last_value_adds_nothing(kernels, case):
    """Far from the center silu has no derivative that is a number; zeros beyond the end are as far."""
    far, one = torch.full(case.shape[1:2], 1e20), torch.ones(case.shape[1])
    x = make_inputs(case).x.fill_(1e20)
    sum_dy, sum_dy_xc = kernels.transform_sums(torch.ones_like(x), x, far, far, one, None, "silu")
    assert sum_dy.isfinite().all() and sum_dy_xc.eq(0).all()


@pytest.mark.parametrize("case", FAULTY_CASES, ids=by_id)
def test_a_value_that_is_no_number_corrupts_its_own_channel_only(kernels, case):
    results = gradients_by_kernels(kernels, make_inputs(case), None, "relu")
    finite = results["dx"].isfinite().transpose(0, 1).flatten(1)
    assert finite[0].all() and finite[2].all()
    assert not finite[1].any()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("case", SMALL_CUT[:5], ids=by_id)
def test_a_value_that_is_no_number_makes_no_other_mean_or_variance_one(kernels, case):
    x = make_inputs(case).x
    x.select(1, 1)[(-1,) * (x.dim() - 1)] = float("nan")
    for result in kernels.moments(x):
        assert result.isnan().tolist() == [channel == 1 for channel in range(case.shape[1])]


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "silu"])
def test_activations_treat_zero_and_what_is_no_number_as_the_reference_does(kernels, activation):
    residual = torch.tensor([[-1.0, 0.0, -0.0, 1.0, float("nan"), float("inf"), -float("inf")]]).T.contiguous()
    x, dy, one, zero = torch.zeros_like(residual), torch.full_like(residual, 3), torch.ones(1), torch.zeros(1)
    affine = (zero, one, zero, residual, activation)
    y, expected = (kernel.transform(x, *affine) for kernel in (kernels, reference))
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-6, atol=0)
    ours, theirs = (kernel.transform_grad(dy, x, *affine, one, zero, zero) for kernel in (kernels, reference))
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", [PLANES, ROWS], ids=by_id)
def test_tensors_of_other_layouts_beside_x_are_read_where_they_belong(kernels, case):
    inputs = make_inputs(case)
    numbers = [torch.rand(inputs.x.shape[1]) for _ in range(6)]
    dy, residual = (tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in (inputs.dy, inputs.residual))
    ours = kernels.transform_grad(dy, inputs.x, *numbers[:3], residual, "relu", *numbers[3:])
    expected = reference.transform_grad(dy, inputs.x, *numbers[:3], residual, "relu", *numbers[3:])
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == inputs.x.stride()


def test_numbers_per_channel_may_be_of_any_strides(kernels):
    x = make_inputs(PLANES).x
    spread = torch.arange(1.0, 11)[::2]
    y = kernels.transform(x, spread, spread, spread[:1].expand(5), None, None)
    torch.testing.assert_close(y, reference.transform(x, spread, spread, spread[:1].expand(5), None, None))


def test_without_a_residual_it_has_no_gradient(kernels):
    inputs = make_inputs(PLANES)
    numbers = [torch.ones(5)] * 6
    assert kernels.transform_grad(inputs.dy, inputs.x, *numbers[:3], None, "relu", *numbers[3:])[1] is None


@pytest.mark.parametrize("case", [PLANES, ROWS], ids=by_id)
def test_kernels_change_none_of_their_arguments(kernels, case):
    inputs = make_inputs(case)
    copies = {name: getattr(inputs, name).clone() for name in ("x", "dy", "residual", "weight", "bias")}
    gradients_by_kernels(kernels, inputs, inputs.residual, "relu")
    assert all(torch.equal(copies[name], getattr(inputs, name)) for name in copies)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("case", [SMALL_CUT[0], SMALL_CUT[8]], ids=by_id)
def test_two_calls_give_the_same_bits(kernels, case):
    inputs = make_inputs(case)
    first, second = (gradients_by_kernels(kernels, inputs, None, "relu") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in ("dx", "dweight", "dbias"))


@pytest.mark.parametrize(
    ("rows", "columns", "block"),
    [
        (1 << 20, 256, (32, 128)),
        (1 << 20, 96, (32, 128)),
        (1 << 20, 64, (64, 64)),
        (1 << 20, 48, (64, 64)),
        (1 << 20, 80, (128, 32)),
        (1 << 20, 257, (64, 64)),
        (1 << 20, 17, (256, 16)),
        (1 << 20, 3, (1024, 4)),
        (1 << 20, 1, (4096, 1)),
        (5, 1 << 20, (8, 512)),
        (1, 1 << 20, (1, 4096)),
        (1, 5, (1, 8)),
    ],
)
def test_a_tile_is_wide_and_mostly_filled(rows, columns, block):
    assert _triton._block(rows, columns, 4096) == block


def test_sums_take_the_fewest_waves_that_are_nearly_full():
    """Of 396 places 300, 700 of 792, 1100 of 1188 and 1500 of 1584 would be taken."""
    assert _triton._shares(100, 396) == 11


def test_a_second_kernel_never_has_to_join_more_than_2048_results(monkeypatch):
    monkeypatch.setattr(_triton, "_programs_at_once", lambda device: 396)
    cut = _triton._cut_for_sums(torch.empty(1 << 20, 1, 7, 7, device="meta"))
    assert not cut.planes
    assert 1024 < cut.partials <= 2048


def test_programs_take_no_more_tiles_than_there_are():
    assert _triton._cut_for_values(torch.empty(4, 3, 5, 5, device="meta")).steps == 1


def test_sums_of_a_full_device_leave_at_most_a_third_of_its_places_empty():
    places = 396
    for across in range(1, 5 * places):
        programs = across * max(1, _triton._shares(across, places))
        waves = -(-programs // places)
        assert 3 * programs >= 2 * waves * places, across
        assert programs <= 4 * places or programs == across


@pytest.fixture
def memory(monkeypatch):
    """What interpreted kernels read and write: first and last byte of every access, and of every tensor given."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    load, store, launch = interpreter._interpreter.load, interpreter._interpreter.store, _triton._launch
    seen = SimpleNamespace(reads=[], writes=[], arguments=[], real=True)

    def note(accesses, pointers, mask, size):
        if mask.any():
            accesses.append((int(pointers[mask].min()), int(pointers[mask].max()) + size - 1))

    def reading(pointers, mask, other, dtype):
        note(seen.reads, pointers, mask, np.dtype(dtype).itemsize)
        return load(pointers, mask, other, dtype) if seen.real else np.zeros(pointers.shape, dtype)

    def writing(pointers, values, mask):
        note(seen.writes, pointers, mask, values.dtype.itemsize)
        assert seen.real, "one program is enough"
        store(pointers, values, mask)

    def launching(kernel, programs, *arguments, **blocks):
        tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
        seen.arguments += [(value.data_ptr(), value.data_ptr() + value.nbytes - 1) for value in tensors]
        launch(kernel, programs, *arguments, **blocks)

    monkeypatch.setattr(interpreter._interpreter, "load", reading)
    monkeypatch.setattr(interpreter._interpreter, "store", writing)
    monkeypatch.setattr(_triton, "_launch", launching)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return seen


on_the_cpu = pytest.mark.skipif(HAS_GPU, reason="where a GPU is, nothing is interpreted")


@on_the_cpu
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("case", SMALL_CUT, ids=by_id)
def test_kernels_stay_within_their_tensors(memory, case):
    inputs = make_inputs(case)
    gradients_by_kernels(_triton, inputs, inputs.residual, "relu")
    _triton.transform(inputs.x, *[torch.ones(case.shape[1])] * 3, inputs.residual, "relu")
    assert memory.reads and memory.writes
    for first, last in memory.reads + memory.writes:
        assert any(start <= first and last <= end for start, end in memory.arguments)


def values(rows, columns, *, per_channel, block):
    height, width = block
    return _triton._Values(
        rows=rows,
        columns=columns,
        across=columns // width,
        per_channel=per_channel,
        channels=1 << 22,
        in_runs=columns == _triton.RUN,
        steps=1,
        block_rows=height,
        block_columns=width,
    )


def sums(rows, slots, *, width):
    only = dict.fromkeys(("runs", "per_channel", "shares", "tiles", "programs"), 1)
    return _triton._Sums(rows=rows, slots=slots, planes=width > 1, block_rows=rows, block_columns=width, **only)


@on_the_cpu
@pytest.mark.parametrize(
    ("cut", "last", "channel"),
    [
        (values(1 << 12, 1 << 21, per_channel=1, block=(1 << 12, 1)), (1 << 33) - 1, (1 << 21) - 1),
        (values(1, 1 << 33, per_channel=1 << 20, block=(1, 16)), (1 << 33) - 1, (1 << 13) - 1),
        (values(1 << 29, 16, per_channel=1 << 16, block=(64, 16)), (1 << 33) - 1, (1 << 13) - 1),
        (sums(1 << 10, 1 << 23, width=1), 1023 << 23, None),
        (sums(1 << 10, 1 << 19, width=16), (1023 << 23) + 15, None),
    ],
    ids=["columns", "long-rows", "runs", "sums-of-columns", "sums-of-planes"],
)
def test_positions_beyond_2_to_the_31_are_right(monkeypatch, memory, cut, last, channel):
    """Nothing is read: a tensor of one value stands for one of 2 to the 33, and its first program is enough."""
    memory.real = False
    monkeypatch.setattr(_triton, "_cut_for_sums", lambda x: cut)
    monkeypatch.setattr(_triton, "_cut_for_values", lambda x: cut)
    x, numbers = torch.zeros(1, 1), [torch.zeros(1) for _ in range(3)]
    with pytest.raises(Exception, match="one program is enough"):
        _triton.moments(x) if channel is None else _triton.transform(x, *numbers, None, None)
    ends = {end for _, end in memory.reads}
    assert x.data_ptr() + 4 * last + 3 in ends
    assert channel is None or all(number.data_ptr() + 4 * channel + 3 in ends for number in numbers)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_values_beyond_position_2_to_the_31_are_found(layout):
    shape = (514, 64, 256, 256)
    assert torch.Size(shape).numel() > 1 << 31
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=layout).normal_(generator=generator)
    numbers = [torch.rand(64, device="cuda", generator=generator) for _ in range(6)]
    last = x[-2:].clone()
    y = _triton.transform(x, *numbers[:3], None, "relu")
    torch.testing.assert_close(y[-2:], reference.transform(last, *numbers[:3], None, "relu"))
    del y
    dx, _ = _triton.transform_grad(x, x, *numbers[:3], None, None, *numbers[3:])
    expected, _ = reference.transform_grad(last, last, *numbers[:3], None, None, *numbers[3:])
    torch.testing.assert_close(dx[-2:], expected)
    del dx
    x[:-2] = 0
    mean, var = _triton.moments(x)
    whole, share = last.double(), 2 / shape[0]
    exact = whole.mean((0, 2, 3)) * share
    torch.testing.assert_close(mean.double(), exact, rtol=1e-5, atol=1e-9)
    squares = whole.square().mean((0, 2, 3)) * share
    torch.testing.assert_close(var.double(), squares - exact.square(), rtol=1e-5, atol=0)
    sums = _triton.transform_sums(x, x, *numbers[:3], None, None)
    expected = reference.transform_sums(last.double(), last.double(), *(n.double() for n in numbers[:3]), None, None)
    torch.testing.assert_close(sums[0].double(), expected[0], rtol=1e-5, atol=1e-1)
    torch.testing.assert_close(sums[1].double(), expected[1], rtol=1e-5, atol=1e-1)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU")
def test_two_streams_at_once_give_the_bits_of_one():
    x = torch.randn(64, 96, 56, 56, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    expected = _triton.moments(x)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    results = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(_triton.moments(x))
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for result in results for one, other in zip(result, expected, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
def test_kernels_run_where_their_tensors_are():
    x = make_inputs(PLANES).x.to("cuda:1")
    for ours, expected in zip(_triton.moments(x), reference.moments(x), strict=True):
        assert ours.device == x.device
        torch.testing.assert_close(ours, expected)

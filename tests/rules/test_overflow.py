"""Batches whose variance overflows float32, on every path of the CPU that trains without a compiler."""

import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import steadynorm
from steadynorm.functional import batch_norm
from tests.support.family import MEMBERS

SMALL, LARGE = (8, 3), (8, 16, 12, 12)
OVERFLOW = r"batch_norm: the sum of squares of a training batch must fit float32 \(3.4e38\), got a variance of 1e\+60"

both_paths = pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["torch", "numba"])
overflow_is_expected = pytest.mark.filterwarnings(r"ignore:\w+. the sum of squares:RuntimeWarning")


@pytest.fixture(autouse=True)
def _compiled_kernels_where_it_is_large(request):
    large = getattr(request.node, "callspec", None) and request.node.callspec.params.get("shape") == LARGE
    with steadynorm.backend("numba") if large else nullcontext():
        yield


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wide(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """All channels but the first have standard deviations near 1e30."""
    x = drawn(*shape)
    x[:, 1:] *= 1e30
    return x.to(dtype)


def trained(x: Tensor, **options: Tensor | str) -> list[Tensor]:
    """Train by ``batch_norm``: y, and the gradients of x, weight and bias for a random dy."""
    channels = x.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    leaves = [x.clone().requires_grad_(), *(drawn(channels, seed=seed).to(dtype).requires_grad_() for seed in (1, 2))]
    with steadynorm.backend("auto") if x.dtype == torch.float64 else nullcontext():
        y = batch_norm(leaves[0], None, None, *leaves[1:], training=True, **options)
    return [y, *torch.autograd.grad(y, leaves, drawn(*x.shape, seed=3).bfloat16().to(y.dtype))]


def assert_close_to_float64(ours: list[Tensor], expected: list[Tensor]) -> None:
    """Compare each channel by its own size: gradients of x are near 1e-30 in some of them."""
    for one, other in zip(ours, expected, strict=True):
        dims = [dim for dim in range(one.dim()) if dim != 1] if one.dim() > 1 else []
        size = other.abs().amax(dims, keepdim=True) if dims else other.abs()
        error = ((one.double() - other).abs() / size).max().item()
        assert error < (2e-2 if one.dtype == torch.bfloat16 else 2e-4), error


def test_a_tensor_that_the_compiled_kernels_take_by_its_size_is_normalized():
    x = wide((8, 16, 64, 64))
    assert steadynorm.explain_backend(x).backend == "numba"
    with pytest.warns(RuntimeWarning, match=OVERFLOW):
        y = batch_norm(x, None, None, training=True)
    torch.testing.assert_close(y.var((0, 2, 3), unbiased=False), torch.ones(16), rtol=1e-4, atol=0)


@both_paths
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_and_gradients_are_those_of_float64(shape, dtype):
    x = wide(shape, dtype)
    with pytest.warns(RuntimeWarning, match=OVERFLOW):
        ours = trained(x)
    assert ours[0].dtype == dtype
    assert_close_to_float64(ours, trained(x.double()))


@both_paths
@overflow_is_expected
def test_residual_and_activation_are_applied_once(shape):
    x, residual = wide(shape), drawn(*shape, seed=5)
    expected = trained(x.double(), residual=residual.double(), activation="silu")
    assert_close_to_float64(trained(x, residual=residual, activation="silu"), expected)


@overflow_is_expected
def test_channels_last_input_gives_channels_last_results():
    x = wide((2, 3, 4, 5)).to(memory_format=torch.channels_last)
    y, dx, *_ = trained(x)
    assert y.stride() == dx.stride() == x.stride()


@overflow_is_expected
@pytest.mark.parametrize("shape", [(8, 3, 5), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("kind", ["BatchRenorm", "GhostBatchNorm"])
def test_the_result_lies_as_torchs_does(shape, kind):
    options = {"ghost_batch_size": shape[0]} if kind == "GhostBatchNorm" else {}
    norm = getattr(steadynorm, f"{kind}{len(shape) - 2}d")(3, **options)
    for at in (1, 2):
        x = wide(shape).movedim(at, -1).contiguous().movedim(-1, at)
        expected = F.batch_norm(x, None, None, training=True).stride()
        for residual in (None, drawn(*shape), drawn(*shape).movedim(1, -1).contiguous().movedim(-1, 1)):
            with steadynorm.backend("reference"), pytest.warns(RuntimeWarning, match="must fit float32"):
                assert norm(x, residual).stride() == expected


@overflow_is_expected
def test_a_residual_of_one_channel_does_not_decide_how_the_result_lies():
    x, residual = 1e30 * drawn(6, 1, 5), drawn(5, 1, 6).permute(2, 1, 0)
    with steadynorm.backend("reference"):
        y = steadynorm.BatchRenorm1d(1)(x, residual)
    assert y.stride() == F.batch_norm(x, None, None, training=True).stride()


def test_the_warning_names_channels_and_remedy():
    with pytest.warns(RuntimeWarning, match=r"over 8 values in 2 of 3 channels \(1, 2\).*Scale the input down") as told:
        batch_norm(wide(SMALL), None, None, training=True)
    assert len(told) == 1


@pytest.mark.parametrize(("channels", "listed"), [(5, r"\(1, 2, 3, 4\)"), (6, r"\(1, 2, 3, 4, \.\.\.\)")])
def test_the_warning_lists_four_channels(channels, listed):
    with pytest.warns(RuntimeWarning, match=f"in {channels - 1} of {channels} channels {listed}"):
        batch_norm(wide((8, channels)), None, None, training=True)


@pytest.mark.parametrize("shape", [SMALL, (8, 3, 40, 40)], ids=str)
def test_float64_that_overflows_gives_what_torch_gives_and_no_advice_to_use_float64(shape):
    x = drawn(*shape).double() * 1e200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = batch_norm(x, None, None, training=True, activation="relu")
    torch.testing.assert_close(y, F.relu(F.batch_norm(x, None, None, training=True)), equal_nan=True)


@pytest.mark.parametrize(
    ("name", "function", "shape"),
    [
        ("BatchNorm", "batch_norm", SMALL),
        ("BatchRenorm", "batch_renorm", SMALL),
        ("BatchRenorm", "batch_renorm", LARGE),
        ("GatedBatchNorm", "gated_batch_norm", SMALL),
        ("GatedBatchNorm", "gated_batch_norm", LARGE),
        ("GhostBatchNorm", "batch_norm", SMALL),  # chunk by chunk
        ("GhostBatchNorm", "ghost_batch_norm", LARGE),
    ],
)
@overflow_is_expected
def test_the_warning_says_what_was_called(name, function, shape):
    layer = getattr(steadynorm, f"{name}{max(len(shape), 3) - 2}d")(shape[1], **MEMBERS[name])
    with pytest.warns(RuntimeWarning, match=rf"^{function}: the sum of squares"):
        layer(wide(shape))


@both_paths
@overflow_is_expected
def test_running_estimates_move_once(shape):
    x = wide(shape)
    norm = steadynorm.BatchNorm2d(shape[1]) if len(shape) == 4 else steadynorm.BatchNorm1d(shape[1])
    norm(x)
    dims = [dim for dim in range(x.dim()) if dim != 1]
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean.double(), 0.1 * x.double().mean(dims), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var[0].double(), 0.9 + 0.1 * x.double().var(dims)[0], rtol=1e-5, atol=0)
    assert norm.running_var[1:].isinf().all()


@overflow_is_expected
def test_such_a_batch_is_not_finite_to_nonfinite():
    skipping = steadynorm.BatchNorm1d(3, nonfinite="skip")
    assert skipping(wide(SMALL)).std(0, unbiased=False).allclose(torch.ones(3), atol=1e-3)
    assert skipping.num_batches_tracked == 0 and skipping.running_var.equal(torch.ones(3))
    with pytest.raises(RuntimeError, match="mean or variance is NaN or infinite"):
        steadynorm.BatchNorm1d(3, nonfinite="raise")(wide(SMALL))


@both_paths
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_input_that_is_not_finite_propagates_without_warning(shape, value):
    x = wide(shape)
    x[0, 1] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = batch_norm(x, None, None, training=True)
    assert y[:, 1].isnan().any()
    assert (y[:, 2] == 0).all() or y[:, 2].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [SMALL, (4, 5, 6), (8, 16, 8, 8)], ids=str)
def test_ordinary_small_input_gives_torchs_bits(shape, dtype):
    results = []
    for function in (batch_norm, F.batch_norm):
        x, weight = drawn(*shape).to(dtype).requires_grad_(), drawn(shape[1], seed=1).requires_grad_()
        estimates = torch.zeros(shape[1]), torch.ones(shape[1])
        y = function(x, *estimates, weight, None, True)
        results.append([y, *torch.autograd.grad(y, [x, weight], drawn(*shape, seed=3).to(dtype)), *estimates])
    for ours, native in zip(*results, strict=True):
        assert ours.equal(native)


@pytest.mark.parametrize("scale", [1e19, 1e37, 3e38])
def test_up_to_the_largest_float32_the_result_has_unit_variance(scale):
    x = (drawn(512, 3).clamp(-1, 1) * scale).float()
    with pytest.warns(RuntimeWarning, match="must fit float32"):
        y = batch_norm(x, None, None, training=True)
    torch.testing.assert_close(y.std(0, unbiased=False), torch.ones(3))


@pytest.mark.parametrize("shape", [(8, 3, 5), LARGE], ids=["rule", "numba"])
@pytest.mark.parametrize("kind", ["BatchRenorm", "GhostBatchNorm"])
@overflow_is_expected
def test_relatives_agree_with_their_float64_layer(kind, shape):
    x, dims = wide(shape), len(shape) - 2
    options = {"ghost_batch_size": 3} if kind == "GhostBatchNorm" else {}
    results = []
    for dtype in (torch.float32, torch.float64):
        norm: nn.Module = getattr(steadynorm, f"{kind}{dims}d")(shape[1], **options).to(dtype)
        leaf = x.to(dtype).requires_grad_()
        with steadynorm.backend("auto") if dtype == torch.float64 else nullcontext():
            y = norm(leaf)
            results.append([y, *torch.autograd.grad(y, [leaf, norm.weight], drawn(*shape, seed=3).to(dtype))])
    assert_close_to_float64(*results)


@overflow_is_expected
def test_the_reference_agrees_with_float64():
    x = wide(SMALL)
    with steadynorm.backend("reference"):
        ours = trained(x)
    assert_close_to_float64(ours, trained(x.double()))


@overflow_is_expected
def test_checkpointing_repeats_it():
    x = wide(SMALL).requires_grad_()
    norm = steadynorm.BatchNorm1d(3)
    gradients = [
        torch.autograd.grad(y, x, drawn(*SMALL, seed=3))[0] for y in (norm(x), checkpoint(norm, x, use_reentrant=False))
    ]
    assert gradients[0].equal(gradients[1]) and gradients[0].any()

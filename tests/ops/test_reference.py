"""The four kernels, put together as batch norm, against the float64 oracle and torch's own result."""

import pytest
import torch
import torch.nn.functional as F

from steadynorm.ops import reference
from steadynorm.ops.reference import ACTIVATIONS
from tests.support.cases import each_case, each_faulty_case, make_inputs
from tests.support.kernels import (
    TORCH,
    affine_of_batch_norm,
    assert_kernels_are_as_accurate_as_torchs,
    gradients_by_kernels,
)

each_activation = pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
with_and_without_residual = pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])


@each_case
@each_activation
@with_and_without_residual
def test_forward_and_gradients_are_as_accurate_as_torchs(case, activation, with_residual):
    inputs = make_inputs(case)
    residual = inputs.residual if with_residual else None
    assert_kernels_are_as_accurate_as_torchs(reference, inputs, residual, activation)


@each_activation
@with_and_without_residual
def test_gradients_of_the_transform_pass_gradcheck(activation, with_residual):
    """With a = scale, b = c = 0, the kernels differentiate ``transform`` itself."""
    generator = torch.Generator().manual_seed(1)
    x, residual = (torch.randn(4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    numbers = [torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(3)]

    class Transform(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, center, scale, shift, residual):
            ctx.save_for_backward(x, center, scale, shift, residual)
            return reference.transform(x, center, scale, shift, residual, activation)

        @staticmethod
        def backward(ctx, dy):
            x, center, scale, shift, residual = ctx.saved_tensors
            common = (dy, x, center, scale, shift, residual, activation)
            sum_dy, sum_dy_xc = reference.transform_sums(*common)
            zero = torch.zeros_like(scale)
            dx, d_residual = reference.transform_grad(*common, scale, zero, zero)
            return dx, -scale * sum_dy, sum_dy_xc, sum_dy, d_residual

    leaves = [tensor.requires_grad_() for tensor in (x, *numbers, residual)]
    assert torch.autograd.gradcheck(Transform.apply, [*leaves[:4], leaves[4] if with_residual else None])


def test_a_b_and_c_enter_dx_as_the_formula_says():
    x = torch.tensor([[3.0], [5.0]])
    center, scale, shift, a, b, c = (torch.tensor([value]) for value in (2.0, 1.0, 0.0, 10.0, 100.0, 7.0))
    dx, d_residual = reference.transform_grad(
        torch.tensor([[1.0], [4.0]]), x, center, scale, shift, None, None, a, b, c
    )
    assert dx.tolist() == [[10 + 100 + 7], [40 + 300 + 7]]
    assert d_residual is None


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_the_slope_exactly_at_zero_is_torchs(activation):
    pre = torch.zeros(2, 1, requires_grad=True)
    (expected,) = torch.autograd.grad(TORCH[activation](pre), pre, torch.ones(2, 1))
    one, zero = torch.ones(1), torch.zeros(1)
    x = torch.zeros(2, 1)
    dx, _ = reference.transform_grad(torch.ones(2, 1), x, zero, one, zero, None, activation, one, zero, zero)
    assert torch.equal(dx, expected)


def test_an_infinite_gradient_ends_at_a_shut_relu():
    one, zero = torch.ones(1), torch.zeros(1)
    x, dy = torch.tensor([[-1.0], [1.0]]), torch.tensor([[float("inf")], [2.0]])
    dx, _ = reference.transform_grad(dy, x, zero, one, zero, None, "relu", one, zero, zero)
    assert dx.tolist() == [[0.0], [2.0]]


@each_case
def test_results_have_the_dtype_and_layout_of_the_input(case):
    inputs = make_inputs(case)
    affine, _ = affine_of_batch_norm(reference, inputs)
    like_torch = F.batch_norm(inputs.x, None, None, None, None, True)
    dense = inputs.x.clone(memory_format=torch.preserve_format)
    y = reference.transform(inputs.x, *affine, inputs.residual, "relu")
    assert (y.dtype, y.shape) == (like_torch.dtype, like_torch.shape)
    assert y.stride() == dense.stride() or case.layout in ("sliced", "expanded")
    common = (inputs.dy, inputs.x, *affine, inputs.residual, "relu")
    dx, d_residual = reference.transform_grad(*common, *affine)
    assert (dx.dtype, dx.shape) == (inputs.x.dtype, inputs.x.shape)
    assert d_residual.dtype == inputs.residual.dtype


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [((4, 3, 5, 6), torch.channels_last), ((4, 3, 2, 5, 6), torch.channels_last_3d)],
    ids=["2d", "3d"],
)
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_channels_last_stays_channels_last_beside_contiguous_tensors(shape, memory_format, activation):
    generator = torch.Generator().manual_seed(0)
    x, dy, residual = (torch.randn(shape, generator=generator) for _ in range(3))
    x = x.contiguous(memory_format=memory_format)
    numbers = [torch.ones(3)] * 3
    y = reference.transform(x, *numbers, residual, activation)
    dx, _ = reference.transform_grad(dy, x, *numbers, residual, activation, *numbers)
    assert y.is_contiguous(memory_format=memory_format)
    assert dx.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_residual_has_the_residuals_dtype(residual_dtype):
    x, dy = torch.ones(4, 3).bfloat16(), torch.ones(4, 3).bfloat16()
    numbers = [torch.ones(3)] * 3
    common = (x, *numbers, torch.ones(4, 3, dtype=residual_dtype), "silu")
    _, d_residual = reference.transform_grad(dy, *common, *numbers)
    assert d_residual.dtype == residual_dtype
    assert reference.transform(*common).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_over_half_precision_values_are_float32(dtype):
    x = torch.ones(4096, 1, dtype=dtype)
    zero, one = torch.zeros(1), torch.ones(1)
    sum_dy, sum_dy_xc = reference.transform_sums(x + x, x, zero, one, zero, None, "relu")
    assert (sum_dy.dtype, sum_dy_xc.dtype) == (torch.float32, torch.float32)
    assert (sum_dy.item(), sum_dy_xc.item()) == (8192.0, 8192.0)


@each_faulty_case
@each_activation
def test_a_value_that_is_no_number_corrupts_its_own_channel_only(case, activation):
    inputs = make_inputs(case)
    affine, _ = affine_of_batch_norm(reference, inputs)
    results = gradients_by_kernels(reference, inputs, inputs.residual, activation)
    results["y"] = reference.transform(inputs.x, *affine, inputs.residual, activation)
    for name in ("y", "dx"):
        finite = results[name].isfinite().transpose(0, 1).flatten(1)
        assert finite[0].all() and finite[2].all(), name
        assert not finite[1].any(), name
    assert results["dweight"].isfinite().tolist() == [True, False, True]


@each_case
@each_activation
def test_kernels_change_none_of_their_arguments(case, activation):
    inputs = make_inputs(case)
    affine, _ = affine_of_batch_norm(reference, inputs)
    arguments = [inputs.dy, inputs.x, inputs.residual, *affine]
    before = [tensor.clone() for tensor in arguments]
    gradients_by_kernels(reference, inputs, inputs.residual, activation)
    reference.transform(inputs.x, *affine, inputs.residual, activation)
    assert all(map(torch.equal, arguments, before))

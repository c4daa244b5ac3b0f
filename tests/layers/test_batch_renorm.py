"""Batch renormalization against the paper's formula, and what its schedule does far past its end."""

import pytest
import torch

import steadynorm
from steadynorm.rules import renorm_bounds
from tests.support.family import build, torchs
from tests.support.layers import drawn, each_shape


def spread(values, x):
    return values.view(-1, *[1] * (x.dim() - 2))


def formula(layer, x, residual, r_max, d_max):
    """Alg. 1 of the paper, with sigma as it has it: the root of variance + eps."""
    dims = [dim for dim in range(x.dim()) if dim != 1]
    mean, var = x.mean(dims, keepdim=True), x.var(dims, unbiased=False, keepdim=True)
    sigma = (var + layer.eps).sqrt()
    running_sigma = (spread(layer.running_var, x) + layer.eps).sqrt()
    r = (sigma / running_sigma).clamp(1 / r_max, r_max).detach()
    d = ((mean - spread(layer.running_mean, x)) / running_sigma).clamp(-d_max, d_max).detach()
    return ((x - mean) / sigma * r + d) * spread(layer.weight, x) + spread(layer.bias, x) + residual


@each_shape
@pytest.mark.parametrize(("r_max", "d_max"), [(3.0, 5.0), (1.1, 0.1), (1.0, 0.0)])
@pytest.mark.parametrize("create_graph", [False, True])
def test_result_and_gradients_are_the_formulas(shape, r_max, d_max, create_graph):
    layer = build("BatchRenorm", len(shape), warmup_steps=0, ramp_steps=0, r_max=r_max, d_max=d_max, activation="relu")
    x, residual = drawn(*shape, seed=1).requires_grad_(), drawn(*shape, seed=2).requires_grad_()
    found = []
    for y in (formula(layer, x, residual, r_max, d_max).relu(), layer(x, residual)):
        wanted = [x, residual, *layer.parameters()]
        found.append([y, *torch.autograd.grad(y, wanted, drawn(*shape, seed=3), create_graph=create_graph)])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@each_shape
def test_without_room_for_corrections_it_is_batch_norm(shape):
    ours, native = build("BatchRenorm", len(shape), r_max=1.0, d_max=0.0), torchs(len(shape))
    for seed in range(4):
        x = drawn(*shape, seed=seed)
        torch.testing.assert_close(ours(x), native(x), rtol=1e-12, atol=1e-12)


@each_shape
def test_within_the_bounds_training_gives_what_evaluation_does(shape):
    layer = build("BatchRenorm", len(shape), warmup_steps=0, ramp_steps=0, r_max=1e6, d_max=1e6)
    x = drawn(*shape)
    expected = layer.eval()(x)
    torch.testing.assert_close(layer.train()(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("step", "r", "d"),
    [(0, 1, 0), (9, 1, 0), (10, 1, 0), (15, 1.5, 1.25), (30, 3, 5), (31, 3, 5), (10_000_000, 3, 5)],
)
def test_the_bounds_are_those_of_batch_norm_then_straight_lines_then_stay(step, r, d):
    bounds = renorm_bounds(torch.tensor(step), warmup_steps=10, ramp_steps=20, r_max=3.0, d_max=5.0)
    assert [bound.item() for bound in bounds] == [r, d]


def test_a_step_on_the_host_has_the_bounds_of_a_step_in_a_tensor():
    for step in (0, 10, 15, 29, 30, 1_000):
        schedule = {"warmup_steps": 10, "ramp_steps": 20, "r_max": 3.0, "d_max": 5.0}
        bounds = renorm_bounds(torch.tensor(step), **schedule)
        assert {bound.dtype for bound in bounds} == {torch.float32}  # not every device has float64
        assert tuple(map(float, bounds)) == pytest.approx(renorm_bounds(step, **schedule), rel=1e-6)


@pytest.mark.parametrize(("step", "expected"), [(9, [1, 0]), (10, [3, 5])])
def test_without_a_ramp_the_bounds_jump(step, expected):
    bounds = renorm_bounds(torch.tensor(step), warmup_steps=10, ramp_steps=0, r_max=3.0, d_max=5.0)
    assert [bound.item() for bound in bounds] == expected


def test_far_past_the_schedule_the_output_stays_where_it_belongs():
    """A batch one running standard deviation off comes out one off, at any step: no correction grows with steps."""
    layer = steadynorm.BatchRenorm1d(1, warmup_steps=10, ramp_steps=10, momentum=0.0).double()
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    means = [layer(x).mean().item() for _ in range(300)]
    assert means[:11] == pytest.approx([0.0] * 11, abs=1e-12)
    assert means[20:] == pytest.approx([1.0] * 280, rel=1e-4)


def test_the_step_goes_on_where_a_checkpoint_of_batch_norm_stands():
    native = torchs()
    native.num_batches_tracked.fill_(1000)
    layer = build("BatchRenorm", warmup_steps=10, ramp_steps=10)
    layer.load_state_dict(native.state_dict())
    x = drawn(5, 3, 2, 3)
    torch.testing.assert_close(layer(x), formula(native, x, 0, 3.0, 5.0), rtol=1e-10, atol=1e-10)


def test_single_values_train_after_the_warm_up_and_leave_finite_statistics():
    layer = steadynorm.BatchRenorm1d(3, warmup_steps=0, ramp_steps=0)
    for seed in range(200):
        x = (drawn(1, 3, seed=seed, dtype=torch.float32) * 2 + 5).requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert y.isfinite().all() and x.grad.isfinite().all()
    assert layer.running_var.isfinite().all() and (layer.running_var > 0.5).all()
    torch.testing.assert_close(layer.running_mean, torch.full((3,), 5.0), rtol=0, atol=2.0)


def test_single_values_are_refused_in_the_warm_up():
    layer = steadynorm.BatchRenorm1d(3, warmup_steps=2, ramp_steps=0)
    with pytest.raises(ValueError, match=r"BatchRenorm1d: Expected more than 1 value .* at step 0 of 2\. Use a larger"):
        layer(torch.ones(1, 3))
    assert layer.num_batches_tracked.item() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"track_running_stats": False}, "there must be running statistics to correct by, got track_running_stats=Fa"),
        ({"r_max": 0.9}, "r_max must be at least 1 and d_max at least 0, got 0.9 and 5.0"),
        ({"d_max": -1.0}, "r_max must be at least 1 and d_max at least 0, got 3.0 and -1.0"),
        ({"warmup_steps": -1}, "warmup_steps and ramp_steps count steps, at least 0, got -1 and 35000"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"BatchRenorm2d: {message}"):
        steadynorm.BatchRenorm2d(3, **arguments)


def test_the_representation_names_its_own_arguments():
    text = repr(steadynorm.BatchRenorm2d(3, warmup_steps=7))
    assert "r_max=3.0, d_max=5.0, warmup_steps=7, ramp_steps=35000" in text


@pytest.mark.parametrize("affine", [{"affine": False}, {"bias": False}], ids=["not-affine", "no-bias"])
def test_absent_parameters_count_as_one_and_zero(affine):
    layer = steadynorm.BatchRenorm2d(3, warmup_steps=0, ramp_steps=0, **affine).double()
    whole = steadynorm.BatchRenorm2d(3, warmup_steps=0, ramp_steps=0).double()
    found = []
    for one in (layer, whole):
        x = (drawn(5, 3, 2, 3) * 2 + 1).requires_grad_()
        y = one(x)
        found.append([y, *torch.autograd.grad(y, x, drawn(5, 3, 2, 3, seed=1))])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)

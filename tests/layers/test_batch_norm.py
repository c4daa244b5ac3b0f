"""The numbers of a layer: torch's layer in every mode, and closed forms."""

import copy

import pytest
import torch
import torch.nn.functional as F

import steadynorm
from steadynorm.ops.reference import ACTIVATIONS
from tests.support import oracle
from tests.support.layers import drawn, each_shape, make_pair

each_momentum = pytest.mark.parametrize("momentum", [0.1, None, 0, 1], ids="momentum-{}".format)
each_affine = pytest.mark.parametrize(
    "affine",
    [{"affine": True}, {"affine": True, "bias": False}, {"affine": False}],
    ids=["affine", "no-bias", "not-affine"],
)
each_tracking = pytest.mark.parametrize("track", [True, False], ids=["tracked", "untracked"])
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def assert_close(actual, expected, what=""):
    assert (actual is None) == (expected is None), what
    if expected is not None:
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, msg=lambda text: f"{what}: {text}")


def run(layer, shape, *, seed):
    """One forward and backward; the result and every gradient, by name."""
    x = drawn(*shape, seed=seed).mul(2).add(0.5).requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(drawn(*shape, seed=seed + 50))
    return {"y": y, "dx": x.grad} | {f"d{name}": p.grad for name, p in layer.named_parameters()}


def assert_same_results(ours, native, shape, *, seed):
    expected = run(native, shape, seed=seed)
    actual = run(ours, shape, seed=seed)
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert_close(actual[name], value, name)


def assert_same_buffers(ours, native):
    for name in STATISTICS:
        assert_close(getattr(ours, name), getattr(native, name), name)


@each_shape
@each_momentum
@each_affine
@each_tracking
def test_one_step_then_two_more_then_evaluation_are_torchs(shape, momentum, affine, track):
    ours, native = make_pair(shape, momentum=momentum, track_running_stats=track, **affine)
    for seed in range(3):
        assert_same_results(ours, native, shape, seed=seed)
        assert_same_buffers(ours, native)
    ours.eval(), native.eval()
    assert_same_results(ours, native, shape, seed=7)
    assert_same_buffers(ours, native)


@each_shape
@each_momentum
def test_statistics_after_exactly_one_step_have_their_closed_form(shape, momentum):
    layer, _ = make_pair(shape, momentum=momentum)
    before = {name: oracle.to_numpy(getattr(layer, name)) for name in STATISTICS}
    x = drawn(*shape, seed=1)
    layer(x)
    batch = oracle.batch_norm(x)
    share = 1.0 if momentum is None else momentum
    for name, new in (("running_mean", batch.mean), ("running_var", batch.var_unbiased)):
        expected = torch.from_numpy((1 - share) * before[name] + share * new)
        assert_close(getattr(layer, name), expected, name)
    assert layer.num_batches_tracked.item() == 1


def test_momentum_none_after_three_steps_is_the_plain_average():
    layer = steadynorm.BatchNorm1d(3, momentum=None).double()
    batches = [drawn(6, 3, seed=seed) * (seed + 1) for seed in range(3)]
    for x in batches:
        layer(x)
    assert_close(layer.running_mean, torch.stack([x.mean(0) for x in batches]).mean(0))
    assert_close(layer.running_var, torch.stack([x.var(0) for x in batches]).mean(0))


def test_evaluation_after_one_step_uses_the_running_statistics():
    layer, _ = make_pair((6, 3))
    layer(drawn(6, 3, seed=1))
    x = drawn(6, 3, seed=2)
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    assert_close(layer.eval()(x), (x - layer.running_mean) * scale + layer.bias)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_eps_is_added_to_the_variance(eps):
    layer = steadynorm.BatchNorm1d(1, eps=eps).double()
    y = layer(torch.tensor([[1.0], [5.0]], dtype=torch.float64))
    assert_close(y[1], torch.tensor([2 / (4 + eps) ** 0.5], dtype=torch.float64))


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@each_shape
def test_residual_and_activation_are_torchs_separate_operations(shape, training, with_residual, activation):
    ours, native = (layer.train(training) for layer in make_pair(shape))
    ours.activation = activation
    torch_activation = (lambda pre: pre) if activation is None else getattr(F, activation)
    results = []
    for layer in (ours, native):
        x, residual = drawn(*shape, seed=1).requires_grad_(), drawn(*shape, seed=2).requires_grad_()
        if layer is native:
            pre = native(x)
            y = torch_activation(pre + residual if with_residual else pre)
        else:
            y = ours(x, residual) if with_residual else ours(x)
        wanted = [x, layer.weight, layer.bias] + [residual] * with_residual
        results.append([y, *torch.autograd.grad(y, wanted, drawn(*shape, seed=3))])
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@each_shape
def test_tracking_switched_off_on_a_live_layer_does_what_torch_does(shape):
    ours, native = make_pair(shape)
    for layer in (ours, native):
        layer(drawn(*shape, seed=1))
        layer.track_running_stats = False
    before = {name: getattr(ours, name).clone() for name in STATISTICS}
    assert_same_results(ours, native, shape, seed=2)
    for name, value in before.items():
        assert torch.equal(getattr(ours, name), value), name
    ours.eval(), native.eval()
    assert_same_results(ours, native, shape, seed=3)


@each_shape
@pytest.mark.parametrize("momentum", [0.1, None])
def test_tracking_switched_on_where_there_are_no_statistics_does_what_torch_does(shape, momentum):
    ours, native = make_pair(shape, track_running_stats=False, momentum=momentum)
    ours.track_running_stats = native.track_running_stats = True
    assert_same_results(ours, native, shape, seed=2)
    assert_same_buffers(ours, native)


def test_statistics_without_a_counter_and_momentum_none_stay_as_torchs_do():
    ours, native = make_pair((6, 3), momentum=None)
    ours.num_batches_tracked = native.num_batches_tracked = None
    assert_same_results(ours, native, (6, 3), seed=2)
    assert_close(ours.running_mean, native.running_mean)
    assert_close(ours.running_var, native.running_var)


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [((4, 3, 2, 5), torch.channels_last), ((4, 3, 2, 5, 2), torch.channels_last_3d)],
    ids=["2d", "3d"],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_channels_last_stays_channels_last(shape, memory_format, training):
    layer = make_pair(shape)[0].train(training)
    x = drawn(*shape).contiguous(memory_format=memory_format).requires_grad_()
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, drawn(*shape, seed=1))
    assert y.is_contiguous(memory_format=memory_format)
    assert dx.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_strides_do_not_change_the_numbers(training):
    layer = make_pair((4, 3, 2, 5))[0].train(training)
    x = drawn(4, 3, 2, 5)
    views = [x, x.transpose(0, 3).contiguous().transpose(0, 3), x.repeat(1, 1, 1, 2)[..., :5]]
    assert not views[1].is_contiguous() and not views[2].is_contiguous()
    results = [copy.deepcopy(layer)(view) for view in views]
    for other in results[1:]:
        assert_close(other, results[0])


def test_a_layer_used_twice_before_the_backward_gets_both_gradients():
    results = []
    for layer in make_pair((6, 3)):
        first, second = layer(drawn(6, 3, seed=1)), layer(drawn(6, 3, seed=2))
        (first * drawn(6, 3, seed=3) + second * drawn(6, 3, seed=4)).sum().backward()
        results.append((layer.weight.grad, layer.bias.grad, layer.running_mean))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gradients_of_gradients_are_torchs(training):
    results = []
    for layer in make_pair((6, 3)):
        layer.train(training)
        x = drawn(6, 3, seed=1).requires_grad_()
        (first,) = torch.autograd.grad(layer(x).pow(3), x, drawn(6, 3, seed=2), create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), [x, layer.weight, layer.bias]))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_parameter_gets_no_gradient_and_the_others_torchs(frozen):
    ours, native = make_pair((6, 3))
    for layer in (ours, native):
        getattr(layer, frozen).requires_grad_(False)
    assert_same_results(ours, native, (6, 3), seed=1)
    assert getattr(ours, frozen).grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_training_still_follows_the_batch(mode):
    ours, native = make_pair((6, 3))
    with mode():
        actual, expected = ours(drawn(6, 3)), native(drawn(6, 3))
    assert not actual.requires_grad
    assert_close(actual.clone(), expected.clone())
    assert_same_buffers(ours, native)


def test_the_result_of_an_evaluation_may_be_changed_in_place():
    layer = make_pair((6, 3))[0].eval()
    x = drawn(6, 3)
    before = x.clone()
    layer(x).mul_(2)
    assert torch.equal(x, before)


def test_values_whose_variance_no_float32_holds_are_named_and_have_unit_variance():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * 1e30
    named = "its mean or variance is NaN or infinite in a layer of 3 channels"
    with pytest.warns(RuntimeWarning, match="must fit float32"), pytest.raises(RuntimeError, match=named):
        steadynorm.BatchNorm1d(3, nonfinite="raise")(x)
    skipping = steadynorm.BatchNorm1d(3, nonfinite="skip")
    with pytest.warns(RuntimeWarning, match="must fit float32"):
        y = skipping(x)
    assert torch.equal(skipping.running_var, torch.ones(3))
    torch.testing.assert_close(y.var(0, correction=0), torch.ones(3))

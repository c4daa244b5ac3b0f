"""Gated batch norm: what its weight does with few and many samples, in and out of place; its own state."""

import pytest
import torch

import steadynorm
from steadynorm.functional import gated_batch_norm
from steadynorm.statistics import Moments
from tests.support.backends import as_chosen
from tests.support.family import build, torchs
from tests.support.layers import drawn, each_shape


def trained(samples: int = 64, **arguments) -> steadynorm.GatedBatchNorm2d:
    """A layer that has seen 200 batches of mean 1 and standard deviation 2, positions being independent."""
    layer = steadynorm.GatedBatchNorm2d(16, affine=False, momentum=0.02, **arguments)
    for seed in range(200):
        layer(drawn(samples, 16, 4, 4, seed=seed, dtype=torch.float32) * 2 + 1)
    return layer


def formula(layer, x, g):
    dims = [dim for dim in range(x.dim()) if dim != 1]
    spread = (-1, *[1] * (x.dim() - 2))
    delta = x.mean(dims) - layer.running_mean
    mean = layer.running_mean + g * delta
    var = (1 - g) * layer.running_var + g * x.var(dims, unbiased=False) + g * (1 - g) * delta.square()
    scaled = (x - mean.view(spread)) / (var + layer.eps).sqrt().view(spread)
    return scaled * layer.weight.view(spread) + layer.bias.view(spread)


@each_shape
@pytest.mark.parametrize("gate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_result_and_gradients_are_the_formulas(shape, gate, training):
    layer = build("GatedBatchNorm", len(shape), gate=gate).train(training)
    x = drawn(*shape, seed=1).requires_grad_()
    found = []
    for y in (formula(layer, x, gate), layer(x)):
        found.append([y, *torch.autograd.grad(y, [x, *layer.parameters()], drawn(*shape, seed=3))])
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@each_shape
def test_an_open_gate_trains_as_batch_norm(shape):
    ours, native = build("GatedBatchNorm", len(shape), gate=1.0), torchs(len(shape))
    for seed in range(3):
        x = drawn(*shape, seed=seed)
        torch.testing.assert_close(ours(x), native(x), rtol=1e-12, atol=1e-12)


@each_shape
def test_a_shut_gate_is_torchs_evaluation(shape):
    ours, native = build("GatedBatchNorm", len(shape), gate=0.0), torchs(len(shape)).eval()
    x = drawn(*shape)
    torch.testing.assert_close(ours(x), native(x), rtol=1e-12, atol=1e-12)


def test_single_values_train_and_evaluate():
    layer = steadynorm.GatedBatchNorm1d(8)
    for seed in range(100):
        x = (drawn(1, 8, seed=seed, dtype=torch.float32) + 3).requires_grad_()
        layer(x).square().sum().backward()
        assert x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert layer.eval()(x).isfinite().all()
    assert layer.running_var.isfinite().all()


def test_the_noise_of_independent_positions_is_one_over_their_number():
    assert trained().noise.item() == pytest.approx(1 / 16, rel=0.1)


def test_the_noise_of_positions_that_agree_is_one():
    layer = steadynorm.GatedBatchNorm2d(16)
    layer.noise.fill_(0.1)
    for seed in range(200):
        layer(drawn(32, 16, 1, 1, seed=seed, dtype=torch.float32).expand(32, 16, 4, 4))
    assert layer.noise.item() == pytest.approx(1, rel=0.1)


def test_one_sample_in_its_place_is_normalized_by_the_stored_statistics():
    layer = trained().eval()
    x = drawn(1, 16, 4, 4, seed=999, dtype=torch.float32) * 2 + 1
    stored = (x - layer.running_mean.view(-1, 1, 1)) / (layer.running_var.view(-1, 1, 1) + layer.eps).sqrt()
    assert (layer(x) - stored).square().mean().item() < 0.05


def test_many_samples_out_of_place_are_normalized_by_their_own_statistics():
    layer = trained().eval()
    y = layer(drawn(64, 16, 4, 4, seed=999, dtype=torch.float32) * 3 + 8)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=0.02)
    torch.testing.assert_close(y.var((0, 2, 3)), torch.ones(16), rtol=0, atol=0.05)


def test_the_gradient_of_the_confidence_is_that_of_the_numbers():
    layer = build("GatedBatchNorm")
    x = drawn(5, 3, 2, 3)

    def forward(confidence):
        given = {name: value.clone() for name, value in layer.named_buffers()} | {"confidence": confidence}
        return torch.func.functional_call(layer, given, (x,))

    start = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(forward, start)


def test_now_and_then_the_first_samples_stand_for_the_batch():
    layer = build("GatedBatchNorm", gate=1.0, small_batch_probability=1.0)
    x = drawn(8, 3, 2, 3).requires_grad_()
    torch.manual_seed(0)
    y = layer(x)
    candidates = []
    for samples in (1, 2, 4):
        part = x[:samples]
        moments = Moments(mean=part.mean((0, 2, 3)), var=part.var((0, 2, 3), unbiased=False), count=samples * 6)
        scaled = (x - moments.mean.view(-1, 1, 1)) / (moments.var + layer.eps).sqrt().view(-1, 1, 1)
        candidates.append(scaled * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1))
    fitting = [one for one in candidates if torch.allclose(one, y, rtol=1e-10, atol=1e-10)]
    assert len(fitting) == 1
    actual, expected = (torch.autograd.grad(one, x, drawn(8, 3, 2, 3, seed=1))[0] for one in (y, fitting[0]))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_statistics_follow_the_whole_batch_whatever_stands_for_it():
    ours, native = build("GatedBatchNorm", small_batch_probability=1.0), torchs()
    ours(drawn(8, 3, 2, 3)), native(drawn(8, 3, 2, 3))
    torch.testing.assert_close(ours.running_mean, native.running_mean)
    torch.testing.assert_close(ours.running_var, native.running_var)


def test_resetting_forgets_noise_and_confidence():
    layer = trained()
    layer.confidence.data.fill_(1)
    layer.reset_running_stats()
    assert layer.noise.item() == 1
    assert layer.confidence.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"track_running_stats": False}, "there must be running statistics to blend with"),
        ({"gate": 1.5}, r"gate must be in \[0, 1\], got 1.5"),
        ({"small_batch_probability": -0.1}, r"small_batch_probability must be in \[0, 1\], got -0.1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"GatedBatchNorm2d: {message}"):
        steadynorm.GatedBatchNorm2d(3, **arguments)


def test_samples_that_stand_for_a_batch_are_believed_as_a_batch_of_their_own():
    x, mean, var = drawn(8, 3, 2, 3) + 1, torch.zeros(3).double(), torch.ones(3).double()
    noise = torch.tensor(0.3, dtype=torch.float64)
    alone, _ = gated_batch_norm(x[:2], mean, var, noise=noise)
    among, _ = gated_batch_norm(x, mean, var, noise=noise, samples=2)
    torch.testing.assert_close(among[:2], alone, rtol=1e-12, atol=1e-12)


@each_shape
@pytest.mark.parametrize("samples", [1, 2, 3])
def test_how_many_samples_stand_for_the_batch_may_be_in_a_tensor(shape, samples):
    mean, var = torch.zeros(shape[1]).double(), torch.ones(shape[1]).double()
    noise, confidence = torch.full((1,), 0.05).double(), torch.tensor([0.1, 0.2, -0.1]).double()
    found = []
    for given in (samples, torch.tensor(samples)):
        x = (drawn(*shape, seed=1) + 1).requires_grad_()
        leaf = confidence.clone().requires_grad_()
        y, moments = gated_batch_norm(x, mean, var, noise=noise, confidence=leaf, samples=given)
        found.append((y, moments.mean, moments.var, *torch.autograd.grad(y, [x, leaf], drawn(*shape, seed=2))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@as_chosen
def test_draws_of_small_batches_compile_into_one_graph():
    """Compiled, the result is that of one of the draws there are."""
    layer = steadynorm.GatedBatchNorm2d(4, gate=0.9, small_batch_probability=0.7)
    x = drawn(6, 4, 3, 3, dtype=torch.float32)
    running = layer.running_mean.clone(), layer.running_var.clone()
    draws = [gated_batch_norm(x, *running, noise=layer.noise, gate=0.9, samples=n)[0] for n in (1, 2, 4, None)]
    compiled, seen = torch.compile(layer, fullgraph=True, backend="aot_eager"), set()
    for _ in range(30):
        layer.reset_running_stats()
        y = compiled(x)
        matches = [n for n, draw in enumerate(draws) if torch.allclose(y, draw, atol=1e-5)]
        assert len(matches) == 1
        seen |= set(matches)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize(("name", "size", "shape"), [("noise", 4, (8, 4)), ("confidence", 4, (64, 4, 64, 64))])
def test_numbers_of_a_gate_that_are_too_many_are_refused_by_name(name, size, shape):
    norm = (steadynorm.GatedBatchNorm1d if len(shape) == 2 else steadynorm.GatedBatchNorm2d)(4)
    state = norm._parameters if name == "confidence" else norm._buffers
    state[name] = torch.nn.Parameter(torch.ones(size)) if name == "confidence" else torch.ones(size)
    with pytest.raises(
        RuntimeError,
        match=rf"GatedBatchNorm[12]d: {name} must have \d elements, once for all channels, got shape \({size},\)",
    ):
        norm(torch.randn(shape))

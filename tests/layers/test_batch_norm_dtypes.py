"""Half precision and double: what is stored in which dtype, and what comes out."""

import pytest
import torch
from torch import nn

import steadynorm
from tests.support import oracle
from tests.support.layers import CLASSES, drawn, each_shape, randomize_

HALF = (torch.float16, torch.bfloat16)
each_half = pytest.mark.parametrize("dtype", HALF)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
STATISTICS = ("running_mean", "running_var")


def statistics_dtypes(layer: nn.Module) -> set[torch.dtype]:
    return {getattr(layer, name).dtype for name in STATISTICS}


@pytest.mark.parametrize(
    ("convert", "parameters", "statistics"),
    [
        (lambda m: m.half(), torch.float16, torch.float32),
        (lambda m: m.bfloat16(), torch.bfloat16, torch.float32),
        (lambda m: m.to(torch.float16), torch.float16, torch.float32),
        (lambda m: m.to(torch.bfloat16), torch.bfloat16, torch.float32),
        (lambda m: m.to(torch.zeros(1, dtype=torch.bfloat16)), torch.bfloat16, torch.float32),
        (lambda m: m.type(torch.float16), torch.float16, torch.float32),
        (lambda m: m.half().float(), torch.float32, torch.float32),
        (lambda m: m.double(), torch.float64, torch.float64),
        (lambda m: m.double().float(), torch.float32, torch.float32),
        (lambda m: m.double().half(), torch.float16, torch.float32),
        (lambda m: m.half().double(), torch.float64, torch.float64),
    ],
    ids=[
        "half",
        "bfloat16",
        "to-half",
        "to-bfloat16",
        "to-tensor",
        "type",
        "half-float",
        "double",
        "double-float",
        "double-half",
        "half-double",
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in-a-model"])
def test_no_conversion_narrows_the_statistics_below_float32(convert, parameters, statistics, inside):
    layer = steadynorm.BatchNorm2d(3)
    convert(nn.Sequential(layer) if inside else layer)
    assert (layer.weight.dtype, layer.bias.dtype) == (parameters, parameters)
    assert statistics_dtypes(layer) == {statistics}


@each_half
def test_the_counter_stays_an_integer(dtype):
    layer = steadynorm.BatchNorm2d(3).to(dtype)
    assert layer.num_batches_tracked.dtype == torch.int64


@each_half
def test_a_conversion_keeps_every_digit_of_the_statistics(dtype):
    layer = randomize_(steadynorm.BatchNorm2d(3))
    layer.running_mean[0] = 1e6
    before = {name: getattr(layer, name).clone() for name in STATISTICS}
    layer.to(dtype)
    assert all(torch.equal(getattr(layer, name), before[name]) for name in STATISTICS)


@each_half
def test_a_layer_built_in_half_precision_has_float32_statistics(dtype):
    layer = steadynorm.BatchNorm2d(3, dtype=dtype)
    assert layer.weight.dtype == dtype
    assert statistics_dtypes(layer) == {torch.float32}
    assert layer.running_var.tolist() == [1, 1, 1]


@each_half
def test_a_conversion_on_the_way_to_the_meta_device_keeps_float32(dtype):
    layer = steadynorm.BatchNorm2d(3).to(device="meta", dtype=dtype)
    assert statistics_dtypes(layer) == {torch.float32}
    assert layer.running_mean.is_meta


@pytest.mark.parametrize("track", [True, False], ids=["tracked", "untracked"])
def test_a_conversion_without_statistics_leaves_none(track):
    layer = steadynorm.BatchNorm2d(3, track_running_stats=track).half()
    assert (layer.running_mean is None) is not track


def test_bfloat16_statistics_do_not_stall_at_a_small_momentum():
    """In bfloat16 an increment of a thousandth is below half a unit in the last place, and stops on the way."""
    layer = steadynorm.BatchNorm1d(1, momentum=0.001).bfloat16()
    x = torch.tensor([[-1.0], [3.0]], dtype=torch.bfloat16)
    for _ in range(2000):
        layer(x)
    left = (1 - 0.001) ** 2000
    assert layer.running_mean.item() == pytest.approx(1 - left, rel=1e-3)
    assert layer.running_var.item() == pytest.approx(8 - 7 * left, rel=1e-3)


@each_half
@each_mode
@pytest.mark.parametrize("parameters", ["float32", "half"])
@each_shape
def test_half_precision_input_gives_half_precision_output_as_accurate_as_torchs(shape, training, parameters, dtype):
    x, dy = drawn(*shape, seed=1, dtype=dtype), drawn(*shape, seed=2, dtype=dtype)
    ours, native = (randomize_(cls(3)).train(training) for cls in CLASSES[len(shape)])
    for layer in (ours, native):
        # Numbers that half precision holds exactly, so that torch's layer may keep its own in float32.
        for parameter in layer.parameters():
            parameter.data = parameter.data.to(dtype).float()
    mean, var = (oracle.to_numpy(getattr(native, name)) for name in STATISTICS)
    if parameters == "half":
        ours.to(dtype)
    results = []
    for layer in (ours, native):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(dy)
        results.append((y, leaf.grad))
        assert layer.weight.grad.dtype == layer.weight.dtype
    weight, bias = native.weight.detach(), native.bias.detach()
    if training:
        expected = (
            oracle.batch_norm(x, weight=weight, bias=bias).y,
            oracle.batch_norm_gradients(dy, x, weight=weight, bias=bias).dx,
        )
    else:
        spread = (1, 3, *[1] * (len(shape) - 2))
        scale = (oracle.to_numpy(weight) / (var + oracle.EPS) ** 0.5).reshape(spread)
        shift = oracle.to_numpy(bias).reshape(spread)
        expected = (
            (oracle.to_numpy(x) - mean.reshape(spread)) * scale + shift,
            oracle.to_numpy(dy) * scale,
        )
    for what, actual, torchs, truth in zip(("y", "dx"), *results, expected, strict=True):
        oracle.assert_as_accurate_as(native=torchs, ours=actual, oracle=truth, what=what)


@each_half
def test_gradients_of_half_precision_parameters_are_those_in_float32_rounded_once(dtype):
    x, dy = drawn(64, 3, seed=1, dtype=dtype), drawn(64, 3, seed=2, dtype=dtype)
    layer = steadynorm.BatchNorm1d(3).to(dtype)
    layer(x).backward(dy)
    expected = oracle.batch_norm_gradients(dy, x)
    for gradient, truth in ((layer.weight.grad, expected.dweight), (layer.bias.grad, expected.dbias)):
        assert gradient.dtype == dtype
        # Half a unit in the last place is a half eps; the float32 in between adds a little.
        torch.testing.assert_close(
            gradient.double(), torch.from_numpy(truth), rtol=0.51 * torch.finfo(dtype).eps, atol=1e-5
        )


@each_mode
@each_half
def test_half_precision_residual_and_activation_keep_the_dtype(dtype, training):
    layer = steadynorm.BatchNorm2d(3, activation="relu").to(dtype).train(training)
    x = drawn(4, 3, 2, 2, dtype=dtype)
    assert layer(x, x).dtype == dtype
    assert layer(x, x.float()).dtype == dtype


@each_mode
def test_half_precision_without_statistics_keeps_the_dtype(training):
    layer = steadynorm.BatchNorm2d(3, track_running_stats=False).bfloat16().train(training)
    assert layer(drawn(4, 3, 2, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@each_mode
def test_cpu_autocast_gives_bfloat16_behind_a_convolution(training):
    model = nn.Sequential(nn.Conv2d(2, 3, 1), steadynorm.BatchNorm2d(3, activation="relu")).train(training)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(drawn(4, 2, 3, 3, dtype=torch.float32))
    y.backward(drawn(4, 3, 3, 3, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert statistics_dtypes(model[1]) == {torch.float32}
    assert model[1].weight.grad.dtype == torch.float32


@each_mode
def test_a_double_layer_takes_double_input(training):
    layer = steadynorm.BatchNorm1d(3).double().train(training)
    assert layer(drawn(6, 3)).dtype == torch.float64


def test_a_half_precision_model_checkpoints_into_torchs_layer():
    layer = randomize_(steadynorm.BatchNorm2d(3)).half()
    native = nn.BatchNorm2d(3)
    native.load_state_dict(layer.state_dict())
    assert torch.equal(native.running_mean, layer.running_mean)


def test_a_half_precision_checkpoint_of_torch_loads_into_float32_statistics():
    native = randomize_(nn.BatchNorm2d(3)).half()
    layer = steadynorm.BatchNorm2d(3).half()
    layer.load_state_dict(native.state_dict())
    assert statistics_dtypes(layer) == {torch.float32}
    assert torch.equal(layer.running_mean, native.running_mean.float())

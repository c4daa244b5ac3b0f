"""What a layer refuses, in torch's types and, where code matches on them, torch's words; and the empty batch."""

import numpy as np
import pytest
import torch
from torch import nn

import steadynorm
from steadynorm import layers
from tests.support.layers import CLASSES, drawn, each_shape, make_pair
from tests.support.versions import skip_before

BOTH = pytest.mark.parametrize("ours", [True, False], ids=["ours", "torch"])
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


@BOTH
@each_mode
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("BatchNorm1d", (3,), r"expected 2D or 3D input \(got 1D input\)"),
        ("BatchNorm1d", (4, 3, 2, 2), r"expected 2D or 3D input \(got 4D input\)"),
        ("BatchNorm2d", (4, 3, 2), r"expected 4D input \(got 3D input\)"),
        ("BatchNorm2d", (4, 3, 2, 2, 2), r"expected 4D input \(got 5D input\)"),
        ("BatchNorm3d", (4, 3, 2, 2), r"expected 5D input \(got 4D input\)"),
    ],
)
def test_an_input_of_the_wrong_rank(ours, training, name, shape, message):
    layer = getattr(steadynorm if ours else nn, name)(3).train(training)
    with pytest.raises(ValueError, match=message):
        layer(torch.ones(shape))


@BOTH
@each_shape
def test_one_value_per_channel_in_training(ours, shape):
    layer = CLASSES[len(shape)][0 if ours else 1](3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer(torch.ones(1, 3, *[1] * (len(shape) - 2)))


@BOTH
@each_shape
def test_one_value_per_channel_in_evaluation_is_fine(ours, shape):
    layer = CLASSES[len(shape)][0 if ours else 1](3).eval()
    assert layer(torch.ones(1, 3, *[1] * (len(shape) - 2))).isfinite().all()


@BOTH
@each_mode
@each_shape
@pytest.mark.parametrize("arguments", [{}, {"affine": False}], ids=["affine", "not-affine"])
def test_a_wrong_number_of_channels(ours, training, shape, arguments):
    layer = CLASSES[len(shape)][0 if ours else 1](4, **arguments).train(training)
    with pytest.raises(RuntimeError, match="running_mean should contain 3 elements"):
        layer(drawn(*shape, dtype=torch.float32))


def skip_torchs_before_it_checked_eps(ours):
    if not ours:
        skip_before((2, 13), "it does not check eps")


@BOTH
@pytest.mark.parametrize("eps", [0.0, -0.1])
def test_eps_that_is_not_positive_in_training(ours, eps):
    skip_torchs_before_it_checked_eps(ours)
    layer = (steadynorm if ours else nn).BatchNorm1d(3, eps=eps)
    with pytest.raises(ValueError, match=f"eps must be positive during training, but got {eps}"):
        layer(torch.ones(4, 3))


@BOTH
def test_negative_eps_in_evaluation(ours):
    skip_torchs_before_it_checked_eps(ours)
    layer = (steadynorm if ours else nn).BatchNorm1d(3, eps=-0.1).eval()
    with pytest.raises(ValueError, match=r"eps must be non-negative, but got -0\.1"):
        layer(torch.ones(4, 3))


@BOTH
def test_eps_zero_in_evaluation_is_fine(ours):
    layer = (steadynorm if ours else nn).BatchNorm1d(3, eps=0.0).eval()
    assert torch.equal(layer(torch.ones(4, 3)), torch.ones(4, 3))


@BOTH
@each_mode
def test_float64_input_beside_float32_parameters(ours, training):
    layer = (steadynorm if ours else nn).BatchNorm1d(3).train(training)
    with pytest.raises(RuntimeError):
        layer(torch.ones(4, 3, dtype=torch.float64))


@BOTH
def test_one_value_counts_as_a_batch_though_it_is_refused(ours):
    layer = (steadynorm if ours else nn).BatchNorm1d(3)
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(torch.ones(1, 3))
    assert layer.num_batches_tracked.item() == 1


def test_an_unknown_activation():
    with pytest.raises(ValueError, match="one of 'relu', 'leaky_relu', 'silu' or None, got 'tanh'"):
        steadynorm.BatchNorm2d(3, activation="tanh")


@each_mode
def test_a_residual_of_another_shape(training):
    layer = steadynorm.BatchNorm2d(3).train(training)
    with pytest.raises(RuntimeError, match=r"input's shape \(4, 3, 2, 2\), got \(1, 3, 1, 1\)"):
        layer(torch.ones(4, 3, 2, 2), torch.ones(1, 3, 1, 1))


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_a_momentum_outside_zero_to_one_at_the_first_training_step(momentum):
    layer = steadynorm.BatchNorm1d(3, momentum=momentum)
    with pytest.raises(ValueError, match=r"weight of the new batch, in \[0, 1\]"):
        layer(drawn(4, 3, dtype=torch.float32))


@pytest.mark.parametrize("name", ["activation", "bias"])
def test_what_torch_does_not_have_by_position_is_keyword_only(name):
    with pytest.raises(TypeError, match="positional arguments"):
        steadynorm.BatchNorm2d(3, 1e-5, 0.1, True, True, None, None, True if name == "bias" else "relu")


@each_shape
@each_mode
@pytest.mark.parametrize("arguments", [{}, {"affine": False}, {"momentum": None}], ids=["affine", "plain", "none"])
def test_an_empty_batch_does_what_it_does_in_torch(shape, training, arguments):
    states = []
    for layer in make_pair(shape, **arguments):
        layer.train(training)
        x = torch.empty(0, *shape[1:], dtype=torch.float64, requires_grad=True)
        y = layer(x)
        y.backward(torch.empty_like(y))
        gradients = {name: p.grad for name, p in layer.named_parameters()}
        states.append({"y": y.detach(), "dx": x.grad} | gradients | layer.state_dict())
    ours, native = states
    assert list(ours) == list(native)
    for name, value in native.items():
        assert torch.equal(ours[name], value), name


def test_an_empty_batch_counts_and_moves_no_statistic():
    layer = make_pair((4, 3))[0]
    before = layer.running_mean.clone(), layer.running_var.clone()
    layer(torch.empty(0, 3, dtype=torch.float64))
    assert layer.num_batches_tracked.item() == 1
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(layer.running_var, before[1])


def test_an_empty_batch_gives_every_parameter_a_gradient_of_zero():
    layer = steadynorm.BatchNorm2d(3, activation="relu")
    residual = torch.empty(0, 3, 2, 2, requires_grad=True)
    layer(torch.empty(0, 3, 2, 2), residual).sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros(3))
    assert torch.equal(layer.bias.grad, torch.zeros(3))
    assert residual.grad.shape == (0, 3, 2, 2)


LAYERS = ("BatchNorm2d", "FrozenBatchNorm2d", "GatedBatchNorm2d", "BatchRenorm2d", "GhostBatchNorm2d")
ARGUMENTS = {"GhostBatchNorm2d": {"ghost_batch_size": 2}}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 0, 3, 3), r"running_mean should contain 0 elements|weight should contain 0 elements"),
        (torch.zeros(0, 5, 3, 3), r"running_mean should contain 5 elements|weight should contain 5 elements"),
        (torch.zeros(0, 4, 3, 3, dtype=torch.complex64), "must be of a floating dtype, got torch.complex64"),
    ],
    ids=["no-channels", "empty-of-5", "empty-complex"],
)
def test_a_misfit_that_torch_lets_pass_is_refused_in_both_modes(name, training, x, message):
    layer = getattr(layers, name)(4, **ARGUMENTS.get(name, {})).train(training)
    with pytest.raises(RuntimeError, match=message):
        layer(x)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_of_more_dimensions_is_refused_in_both_modes(name, training):
    layer = getattr(layers, name)(4, **ARGUMENTS.get(name, {})).train(training)
    layer.weight = nn.Parameter(torch.ones(4, 1, 1, 1))
    with pytest.raises(RuntimeError, match=r"weight should contain 4 elements.*got shape \(4, 1, 1, 1\)"):
        layer(torch.randn(2, 4, 3, 3))


LAYERS_1D = ("BatchNorm1d", "FrozenBatchNorm1d", "GatedBatchNorm1d", "BatchRenorm1d", "MaskedBatchNorm1d")


def nested(layout):
    return torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(2, 4)], layout=layout)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=["jagged", "strided"])
@pytest.mark.parametrize("name", LAYERS_1D)
def test_a_nested_tensor_is_refused_with_what_to_do(name, layout, training):
    layer = getattr(layers, name)(4).train(training)
    message = r"{} must be a tensor of one size, got a nested one .* MaskedBatchNorm1d"
    with pytest.raises(ValueError, match=message.format("input")) as caught:
        layer(nested(layout))
    assert (".values()" in str(caught.value)) == (layout == torch.jagged)  # those of a strided one have no channels
    with pytest.raises(ValueError, match=message.format("residual")):
        layer(torch.randn(2, 4), residual=nested(layout))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("what", ["input", "mask", "lengths"])
def test_a_nested_tensor_beside_a_mask_is_refused(what, training):
    given = {"input": torch.randn(2, 4, 3), "mask": torch.ones(2, 3, dtype=torch.bool)}
    if what == "lengths":
        del given["mask"]
    given[what] = nested(torch.strided)
    with pytest.raises(ValueError, match=f"{what} must be a tensor of one size, got a nested one"):
        layers.MaskedBatchNorm1d(4).train(training)(**given)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=["coo", "csr"])
@pytest.mark.parametrize("name", LAYERS_1D)
def test_a_sparse_tensor_is_refused_with_what_to_do(name, sparse, training):
    with pytest.raises(ValueError, match=r"input must be dense, got layout torch\.sparse_.*to_dense"):
        getattr(layers, name)(4).train(training)(sparse(torch.randn(3, 4)))


@pytest.mark.parametrize("name", LAYERS_1D)
def test_an_array_in_place_of_a_tensor_is_named(name):
    for x in (np.ones((3, 4), dtype=np.float32), [[1.0] * 4] * 3):
        with pytest.raises(TypeError, match=rf"^{name}: input must be a torch\.Tensor, got (ndarray|list)"):
            getattr(layers, name)(4)(x)

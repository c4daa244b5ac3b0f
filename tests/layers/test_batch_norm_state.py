"""What a layer is and stores: the class, its state dict, checkpoints of every age, copies, resets."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import steadynorm
from tests.support.family import build, each_member
from tests.support.layers import (
    CHANNELS,
    CLASSES,
    drawn,
    each_shape,
    make_native,
    make_pair,
    randomize_,
    repr_of_torchs,
)

KEYS = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
each_name = pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
ARGUMENTS = (
    {},
    {"affine": False},
    {"bias": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
    {"momentum": None, "eps": 1e-3},
    {"dtype": torch.float64},
)


def with_arguments(*choices: dict) -> pytest.MarkDecorator:
    ids = ["-".join(f"{name}={value}" for name, value in choice.items()) or "default" for choice in choices]
    return pytest.mark.parametrize("arguments", choices, ids=ids)


each_set_of_arguments = with_arguments(*ARGUMENTS)
each_set_of_arguments_and_meta = with_arguments(*ARGUMENTS, {"device": "meta"})


def pair(name: str, **arguments) -> tuple[nn.Module, nn.Module]:
    return getattr(steadynorm, name)(3, **arguments), make_native(getattr(nn, name), 3, **arguments)


@each_name
def test_a_layer_is_an_instance_of_torchs(name):
    ours, _ = pair(name)
    assert isinstance(ours, getattr(nn, name))
    others = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d"} - {name}
    assert not any(isinstance(ours, getattr(nn, other)) for other in others)


@each_name
@each_set_of_arguments_and_meta
def test_the_state_dict_is_torchs_in_keys_order_shapes_dtypes_and_devices(name, arguments):
    ours, native = (
        [(key, value.shape, value.dtype, value.device) for key, value in layer.state_dict().items()]
        for layer in pair(name, **arguments)
    )
    assert ours == native


def test_the_state_dict_has_the_five_keys_and_version_two():
    state = steadynorm.BatchNorm2d(3, activation="relu").state_dict()
    assert list(state) == KEYS
    assert state._metadata[""]["version"] == 2
    assert [tuple(value.shape) for value in state.values()] == [(3,), (3,), (3,), (3,), ()]
    assert state["num_batches_tracked"].dtype == torch.int64


@each_name
@each_set_of_arguments
def test_a_new_layer_holds_torchs_initial_numbers(name, arguments):
    ours, native = (layer.state_dict() for layer in pair(name, **arguments))
    assert all(torch.equal(ours[key], native[key]) for key in native)


@each_name
@each_set_of_arguments
def test_checkpoints_load_strictly_in_both_directions(name, arguments):
    for source, target in (pair(name, **arguments), reversed(pair(name, **arguments))):
        randomize_(source)
        assert target.load_state_dict(source.state_dict(), strict=True) == ([], [])
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("metadata", ["version 1", "none"])
def test_a_checkpoint_from_before_the_counter_loads_strictly_and_keeps_ours(metadata):
    layer, native = pair("BatchNorm2d")
    state = randomize_(native).state_dict()
    del state["num_batches_tracked"]
    if metadata == "none":
        state = dict(state)
    else:
        state._metadata[""]["version"] = 1
    layer.num_batches_tracked.fill_(5)
    layer.load_state_dict(state, strict=True)
    assert layer.num_batches_tracked.item() == 5
    assert torch.equal(layer.running_var, native.running_var)


def test_a_checkpoint_of_version_two_without_the_counter_is_refused():
    layer, native = pair("BatchNorm2d")
    state = native.state_dict()
    del state["num_batches_tracked"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "num_batches_tracked"'):
        layer.load_state_dict(state)


def test_loading_by_assignment_onto_the_meta_device():
    layer, native = steadynorm.BatchNorm1d(3, device="meta"), nn.BatchNorm1d(3)
    layer.load_state_dict(copy.deepcopy(randomize_(native).state_dict()), assign=True)
    x = drawn(6, 3, dtype=torch.float32)
    torch.testing.assert_close(layer(x), native(x))
    assert torch.equal(layer.num_batches_tracked, torch.tensor(1))


def test_loading_an_old_checkpoint_by_assignment_onto_the_meta_device_starts_the_counter():
    layer, native = steadynorm.BatchNorm1d(3, device="meta"), nn.BatchNorm1d(3)
    state = dict(randomize_(native).state_dict())
    del state["num_batches_tracked"]
    layer.load_state_dict(state, assign=True)
    assert torch.equal(layer.num_batches_tracked, torch.tensor(0))


@pytest.mark.parametrize(
    "transport",
    [
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: torch.load(_saved(layer), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_computes_the_same_and_shares_nothing(transport):
    layer, _ = make_pair((6, 3))
    layer.activation = "silu"
    other = transport(layer)
    x = drawn(6, 3)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(other.running_mean, layer.running_mean)
    other(x)
    assert not torch.equal(other.running_mean, layer.running_mean)
    assert layer.num_batches_tracked.item() == 1


def _saved(layer: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return file


def test_a_checkpoint_read_back_without_pickle_loads():
    native = randomize_(nn.BatchNorm2d(3))
    file = io.BytesIO()
    torch.save(native.state_dict(), file)
    file.seek(0)
    layer = steadynorm.BatchNorm2d(3)
    layer.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(layer.running_mean, native.running_mean)


def test_a_whole_models_checkpoint_loads_with_prefixes():
    ours = nn.Sequential(nn.Conv2d(2, 3, 1), steadynorm.BatchNorm2d(3, activation="relu"))
    native = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    assert ours.load_state_dict(native.state_dict()) == ([], [])


@pytest.mark.parametrize("momentum", [0.1, None])
def test_training_mutates_the_buffers_in_place(momentum):
    layer = steadynorm.BatchNorm1d(3, momentum=momentum)
    before = {name: (buffer, buffer.data_ptr(), buffer.clone()) for name, buffer in layer.named_buffers()}
    layer(drawn(6, 3, dtype=torch.float32))
    for name, (buffer, address, value) in before.items():
        assert getattr(layer, name) is buffer, name
        assert buffer.data_ptr() == address, name
        assert not torch.equal(buffer, value), name


@pytest.mark.parametrize("method", ["reset_parameters", "reset_running_stats"])
def test_resetting_fills_the_same_tensors(method):
    layer = randomize_(steadynorm.BatchNorm2d(3))
    layer.num_batches_tracked.fill_(7)
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    before = {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors.items()}
    weight = layer.weight.detach().clone()
    getattr(layer, method)()
    after = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    assert {name: (id(tensor), tensor.data_ptr()) for name, tensor in after.items()} == before
    assert layer.running_mean.tolist() == [0, 0, 0]
    assert layer.running_var.tolist() == [1, 1, 1]
    assert layer.num_batches_tracked.item() == 0
    if method == "reset_parameters":
        assert layer.weight.tolist() == [1, 1, 1]
        assert layer.bias.tolist() == [0, 0, 0]
    else:
        assert torch.equal(layer.weight, weight)


@each_set_of_arguments
def test_resetting_works_for_every_combination_of_arguments(arguments):
    layer = steadynorm.BatchNorm2d(3, **arguments)
    layer.reset_parameters()
    assert [name for name, value in layer._parameters.items() if value is None] == [
        name for name, value in make_native(nn.BatchNorm2d, 3, **arguments)._parameters.items() if value is None
    ]


@each_name
@each_set_of_arguments_and_meta
def test_the_repr_is_torchs_followed_by_the_activation(name, arguments):
    ours, native = pair(name, **arguments)
    assert repr(ours) == repr_of_torchs(native)[:-1] + ", activation=None)"


def test_the_repr_shows_bias_and_activation():
    layer = steadynorm.BatchNorm2d(8, bias=False, activation="relu")
    assert "bias=False" in repr(layer)
    assert repr(layer).endswith("activation='relu')")


@each_name
def test_arguments_by_position_are_torchs(name):
    positional = (3, 0.01, 0.2, False, False, torch.device("cpu"), torch.float64)
    ours, native = getattr(steadynorm, name)(*positional), getattr(nn, name)(*positional)
    assert repr(ours) == repr_of_torchs(native)[:-1] + ", activation=None)"


@each_shape
def test_the_meta_device_carries_shapes_in_both_modes(shape):
    layer = CLASSES[len(shape)][0](3, device="meta", activation="relu")
    x = torch.empty(shape, device="meta")
    for mode in (True, False):
        y = layer.train(mode)(x, x)
        assert (y.device.type, y.shape, y.dtype) == ("meta", torch.Size(shape), torch.float32)


def test_a_layer_made_on_the_meta_device_can_be_materialized():
    layer = steadynorm.BatchNorm1d(3, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    x = drawn(6, 3, dtype=torch.float32)
    torch.testing.assert_close(layer(x), nn.BatchNorm1d(3)(x))


class _Same(nn.Module):
    """A parametrization that changes nothing."""

    def forward(self, tensor):
        return tensor


@each_member
@pytest.mark.parametrize("stored", ["running_mean", "running_var", "weight", "bias"])
def test_a_parametrized_or_replaced_tensor_is_read_in_training(name, stored):
    x = torch.randn(4, CHANNELS, 5, dtype=torch.float64)
    plain, parametrized, replaced = (copy.deepcopy(module) for module in [build(name, 3)] * 3)
    nn.utils.parametrize.register_parametrization(parametrized, stored, _Same())
    value = getattr(replaced, stored).detach().clone()
    delattr(replaced, stored)
    setattr(replaced, stored, value)
    expected = plain.train()(x)
    assert torch.equal(parametrized.train()(x), expected)
    assert torch.equal(replaced.train()(x), expected)

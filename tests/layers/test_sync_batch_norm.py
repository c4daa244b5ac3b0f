"""Synchronized batch norm in one process, where it is batch norm, with torch's signature and state."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import steadynorm
from steadynorm.layers import SyncBatchNorm
from steadynorm.layers.name import describe
from steadynorm.statistics.ranks import ranks_of
from tests.support.backends import as_chosen
from tests.support.layers import CLASSES, SHAPES, drawn, each_shape, randomize_, repr_of_torchs

ARGUMENTS = (
    {},
    {"affine": False},
    {"bias": False},
    {"track_running_stats": False},
    {"momentum": None},
    {"activation": "silu"},
    {"update_every": 2, "nonfinite": "skip"},
)
each_set_of_arguments = pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def pair(shape, **arguments):
    """Ours, and batch norm for such an input, with the same numbers in them."""
    ours = randomize_(SyncBatchNorm(3, **arguments).double())
    return ours, randomize_(CLASSES[len(shape)][0](3, **arguments).double())


def outcome(layer, shape, *, seed):
    x, residual = drawn(*shape, seed=seed).requires_grad_(), drawn(*shape, seed=seed + 1).requires_grad_()
    y = layer(x, residual)
    y.backward(drawn(*shape, seed=9))
    gradients = [parameter.grad for parameter in layer.parameters()]
    return [y.detach(), x.grad, residual.grad, *gradients, *layer.state_dict().values()]


@each_shape
@each_set_of_arguments
@each_mode
def test_alone_it_is_batch_norm_to_the_bit(shape, arguments, training):
    ours, plain = (layer.train(training) for layer in pair(shape, **arguments))
    for seed in range(2):
        for actual, expected in zip(outcome(ours, shape, seed=seed), outcome(plain, shape, seed=seed), strict=True):
            assert torch.equal(actual, expected)


def test_alone_one_value_per_channel_is_refused():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        SyncBatchNorm(3)(torch.ones(1, 3))


def test_a_group_of_one_rank_is_batch_norm(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    try:
        ours, plain = pair(SHAPES[1])
        assert torch.equal(ours(drawn(*SHAPES[1])), plain(drawn(*SHAPES[1])))
        assert ranks_of() is None
    finally:
        dist.destroy_process_group()


def test_without_a_process_group_there_are_no_ranks():
    assert ranks_of() is None


def test_it_is_torchs_batch_norm_but_not_the_one_that_is_refused_on_cpus():
    assert isinstance(SyncBatchNorm(3), _BatchNorm)
    assert not isinstance(SyncBatchNorm(3), nn.SyncBatchNorm)


def test_arguments_by_position_are_torchs():
    positional = (3, 0.01, 0.2, False, False, None, torch.device("cpu"), torch.float64)
    assert repr(SyncBatchNorm(*positional)) == repr_of_torchs(nn.SyncBatchNorm(*positional))[:-1] + ", activation=None)"


def test_what_torch_does_not_have_by_position_is_keyword_only():
    with pytest.raises(TypeError, match="positional arguments"):
        SyncBatchNorm(3, 1e-5, 0.1, True, True, None, None, None, "relu")


@pytest.mark.parametrize("native", [nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("arguments", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
def test_checkpoints_load_strictly_in_both_directions(native, arguments):
    for source, target in ((SyncBatchNorm, native), (native, SyncBatchNorm)):
        state = randomize_(source(3, **arguments)).state_dict()
        other = target(3, **arguments)
        assert other.load_state_dict(state, strict=True) == ([], [])
        assert list(other.state_dict()) == list(state)
        assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def through_a_file(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), through_a_file])
def test_a_copy_goes_on_alike(copied):
    layer, _ = pair((6, 3), update_every=2)
    layer(drawn(6, 3))
    other = copied(layer)
    for seed in range(1, 4):
        assert torch.equal(other(drawn(6, 3, seed=seed)), layer(drawn(6, 3, seed=seed)))
    assert torch.equal(other.running_mean, layer.running_mean)


def test_a_deep_copy_shares_no_tensor():
    layer, _ = pair((6, 3))
    other = copy.deepcopy(layer)
    other(drawn(6, 3))
    assert layer.num_batches_tracked.item() == 0
    assert other.weight is not layer.weight


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_has_yet_to_agree_with_other_ranks(copied):
    layer, _ = pair((6, 3))
    layer._agreed.add(("group", 3, torch.float64))
    assert copied(layer)._agreed == set()
    assert layer._agreed == {("group", 3, torch.float64)}


def test_a_deep_copy_keeps_what_cannot_be_copied_of_the_process_group():
    layer, group = SyncBatchNorm(3), object()
    layer.process_group = group
    assert copy.deepcopy(layer).process_group is group


@pytest.mark.parametrize("shape", [(), (3,)])
def test_an_input_without_channels_is_refused(shape):
    with pytest.raises(ValueError, match=rf"expected at least 2D input \(got {len(shape)}D input\)"):
        SyncBatchNorm(3)(torch.ones(shape))


# Dynamo itself instantiates an autograd function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@each_mode
@as_chosen
def test_alone_it_compiles_in_one_graph(training):
    ours, plain = (layer.train(training) for layer in pair((6, 3), activation="relu"))
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        x = drawn(6, 3, seed=seed)
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.running_var, plain.running_var, rtol=1e-10, atol=1e-10)
    torch._dynamo.reset()


def test_an_evaluating_layer_exports_to_torchs_operations():
    model = nn.Sequential(pair((6, 3))[0]).eval()
    exported = torch.export.export(model, (drawn(6, 3),))
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert targets and all(target.startswith("aten.") for target in targets)


def test_a_message_names_the_layer_by_its_longest_name():
    model = nn.ModuleDict({"body": nn.Sequential(nn.Identity(), steadynorm.layers.SyncBatchNorm(5))})
    assert describe(model["body"][1]) == "SyncBatchNorm(5) 'body.1'"


def test_a_message_names_a_layer_that_nobody_holds_by_its_class():
    assert describe(SyncBatchNorm(5)) == "SyncBatchNorm(5)"

"""What every layer of the family keeps of batch norm: state, evaluation, dtypes, copies, compilers, checkpointing."""

import contextlib
import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from steadynorm.layers import batch_norm_state
from steadynorm.ops.reference import ACTIVATIONS
from tests.support.backends import as_chosen
from tests.support.family import MEMBERS, build, each_batch_norm_in_evaluation, each_follower, each_member, torchs
from tests.support.layers import drawn, each_shape

SHAPE = (5, 3, 2, 3)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def state_of(layer):
    return {name: value.clone() for name, value in layer.state_dict().items()}


def assert_same_state(layer, expected):
    for name, value in layer.state_dict().items():
        assert_close(value, expected[name])


@each_batch_norm_in_evaluation
@each_shape
def test_a_layer_is_an_instance_of_torchs(name, shape):
    assert isinstance(build(name, len(shape)), type(torchs(len(shape))))


@each_member
def test_checkpoints_move_both_ways(name):
    ours, native = build(name), torchs()
    native(drawn(*SHAPE))
    with pytest.warns(UserWarning, match="begins again") if name == "GatedBatchNorm" else contextlib.nullcontext():
        ours.load_state_dict(native.state_dict(), strict=True)
    assert_same_state(native, ours.state_dict())
    ours.train()(drawn(*SHAPE, seed=1))
    native.load_state_dict(batch_norm_state(ours.state_dict()), strict=True)
    assert_same_state(native, ours.state_dict())


@each_batch_norm_in_evaluation
@each_shape
def test_evaluation_is_torchs_batch_norm(name, shape):
    ours, native, x = build(name, len(shape)).eval(), torchs(len(shape)).eval(), drawn(*shape)
    before = state_of(ours)
    assert_close(ours(x), native(x))
    assert_same_state(ours, before)


def differentiated(name, training, activation):
    """A layer as a function of all its inputs, and where to differentiate it."""
    layer = build(name, activation=activation).train(training)
    start = state_of(layer)

    def forward(x, residual, weight, bias):
        given = {key: value.clone() for key, value in start.items()} | {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, given, (x, residual))

    shape = (5, 3, 1, 2)  # the second derivatives are taken number by number, and so in the square of their number
    inputs = [drawn(*shape, seed=1), drawn(*shape, seed=2), drawn(3, seed=3), drawn(3, seed=4)]
    if name == "BatchRenorm":
        # r and d are constants to the gradient, so that finite differences see them only where they are clipped.
        layer.warmup_steps = 10
    if name == "GatedBatchNorm":
        layer.gate, layer.confidence = 0.3, None  # likewise
    return forward, [value.requires_grad_() for value in inputs]


@each_member
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gradients_of_all_inputs_are_those_of_the_numbers(name, training, activation):
    assert torch.autograd.gradcheck(*differentiated(name, training, activation))


# Every member in both modes with both backends; each activation meets all of them, one at a time.
@pytest.mark.parametrize(
    ("each_backend", "name", "training", "activation"),
    [
        (backend, name, training, (None, *ACTIVATIONS)[(number + training + 2 * (backend == "auto")) % 4])
        for number, name in enumerate(MEMBERS)
        for training in (True, False)
        for backend in ("reference", "auto")
    ],
    indirect=["each_backend"],
)
def test_gradients_of_gradients_are_those_of_the_numbers(each_backend, name, training, activation):
    assert torch.autograd.gradgradcheck(*differentiated(name, training, activation))


@each_member
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_shape_dtype_and_memory_format_are_the_inputs(name, memory_format):
    layer = build(name, activation="relu").float()
    x = drawn(6, 3, 2, 3, dtype=torch.bfloat16).contiguous(memory_format=memory_format).requires_grad_()
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    for result in (y, dx):
        assert result.shape == x.shape
        assert result.dtype == x.dtype
        assert result.is_contiguous(memory_format=memory_format)


@each_member
def test_an_empty_batch_gives_an_empty_result_and_moves_no_estimate(name):
    layer = build(name)
    before = state_of(layer)
    y = layer(torch.empty(0, 3, 2, 2, dtype=torch.float64))
    assert y.shape == (0, 3, 2, 2)
    assert torch.equal(layer.running_mean, before["running_mean"])
    assert torch.equal(layer.running_var, before["running_var"])


@each_member
def test_a_fault_stays_in_its_channel(name):
    layer, x = build(name), drawn(*SHAPE)
    x[0, 1, 0, 0] = float("nan")
    y = layer(x)
    assert not y[:, [0, 2]].isnan().any()
    assert y[:, 1].isnan().any()


@each_member
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_stay_float32_in_a_half_precision_module(name, dtype):
    layer = build(name, update_every=2).to(dtype)
    layer(drawn(*SHAPE, dtype=dtype)), layer(drawn(*SHAPE, dtype=dtype, seed=1))
    assert layer.weight.dtype == dtype
    assert {layer.running_mean.dtype, layer.running_var.dtype} == {torch.float32}


@each_member
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_goes_on_alike(name, copied):
    layer = build(name, update_every=2)
    layer(drawn(*SHAPE))
    other = copied(layer)
    for seed in (1, 2, 3):
        assert_close(other(drawn(*SHAPE, seed=seed)), layer(drawn(*SHAPE, seed=seed)))
    assert_same_state(other, layer.state_dict())


@each_member
def test_a_saved_state_can_be_loaded_as_tensors_alone(name):
    layer, file = build(name), io.BytesIO()
    layer(drawn(*SHAPE))
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = build(name)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same_state(other, layer.state_dict())


# Dynamo itself instantiates an autograd function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@each_member
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="plain"),
        pytest.param({"update_every": 2, "nonfinite": "skip"}, id="window", marks=pytest.mark.slow),
        pytest.param({"running": "self_tuned"}, id="self-tuned", marks=pytest.mark.slow),
    ],
)
@as_chosen
def test_a_layer_compiles_in_one_graph_into_the_same_numbers(name, arguments):
    layer = build(name, activation="silu", **arguments)
    eager = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seed in range(4):
        found = []
        for run, module in ((compiled, layer), (eager, eager)):
            x, residual = drawn(*SHAPE, seed=seed).requires_grad_(), drawn(*SHAPE, seed=9).requires_grad_()
            y = run(x, residual)
            found.append([y, *torch.autograd.grad(y, [x, residual, *module.parameters()], drawn(*SHAPE, seed=8))])
        for actual, expected in zip(*found, strict=True):
            assert_close(actual, expected)
        assert_same_state(layer, eager.state_dict())
    torch._dynamo.reset()


@pytest.mark.slow
@each_member
@pytest.mark.parametrize("how", ["no_grad", "nothing requires a gradient"])
@as_chosen
def test_a_layer_compiles_in_one_graph_where_no_gradient_is_wanted(name, how):
    layer = build(name, activation="silu").requires_grad_(how == "no_grad")
    eager = copy.deepcopy(layer)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        x, residual = drawn(*SHAPE, seed=seed), drawn(*SHAPE, seed=9)
        with torch.set_grad_enabled(how != "no_grad"):
            assert_close(compiled(x, residual), eager(x, residual))
        assert_same_state(layer, eager.state_dict())
    torch._dynamo.reset()


class Pair(nn.Module):
    def __init__(self, name, **arguments):
        super().__init__()
        self.first, self.second = build(name, activation="silu", **arguments), build(name, **arguments)

    def forward(self, x):
        return self.second(self.first(x).square())


@each_member
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not-reentrant"])
@pytest.mark.parametrize(
    "arguments", [{}, {"update_every": 2}, {"running": "self_tuned"}], ids=["plain", "window", "self-tuned"]
)
def test_checkpointing_changes_neither_gradients_nor_statistics(name, use_reentrant, arguments):
    plain, checkpointed = Pair(name, **arguments), Pair(name, **arguments)
    for seed in range(3):
        found = []
        for module, run in (
            (plain, plain),
            (checkpointed, lambda x: checkpoint(checkpointed, x, use_reentrant=use_reentrant)),
        ):
            x = drawn(*SHAPE, seed=seed).requires_grad_()
            module.zero_grad()
            run(x).backward(drawn(*SHAPE, seed=7))
            found.append([x.grad, *(parameter.grad for parameter in module.parameters())])
        for actual, expected in zip(*found, strict=True):
            assert_close(actual, expected)
        assert_same_state(checkpointed, plain.state_dict())


@each_follower
@pytest.mark.parametrize("momentum", [0.3, None])
def test_estimates_follow_the_whole_batch_as_torchs_do(name, momentum):
    ours, native = build(name, momentum=momentum), torchs(momentum=momentum)
    for seed in range(3):
        ours(drawn(*SHAPE, seed=seed)), native(drawn(*SHAPE, seed=seed))
    found = batch_norm_state(ours.state_dict())
    assert found.keys() == native.state_dict().keys()
    for key, expected in native.state_dict().items():
        assert_close(found[key], expected)

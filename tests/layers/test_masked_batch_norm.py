"""Masked batch norm: torch's batch norm of the valid values packed together, and padding that stays as it is."""

import copy
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import steadynorm
from steadynorm.layers import MaskedBatchNorm1d
from steadynorm.ops.reference import ACTIVATIONS
from tests.support import oracle
from tests.support.layers import drawn, randomize_

SHAPE = (4, 3, 5)
LENGTHS = torch.tensor([5, 2, 0, 3])
NAN = float("nan")
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
each_activation = pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
each_set_of_arguments = pytest.mark.parametrize(
    "arguments",
    [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}, {"momentum": None}],
    ids=str,
)


@pytest.fixture
def each_backend():
    """Plain tensor operations, whatever is chosen."""


def pair(**arguments):
    """Ours and torch's with the same random numbers, in float64."""
    ours_alone = ("activation", "update_every", "nonfinite")
    native_arguments = {name: value for name, value in arguments.items() if name not in ours_alone}
    return tuple(
        randomize_(cls(3, **given).double())
        for cls, given in ((MaskedBatchNorm1d, arguments), (nn.BatchNorm1d, native_arguments))
    )


def mask_of(*shape, seed=3):
    return drawn(shape[0], *shape[2:], seed=seed) > -0.3


def packed(values, mask):
    """Shape (values, C)."""
    return values.movedim(1, -1)[mask]


def by_packing(native, x, mask, residual, activation):
    y = native(packed(x, mask))
    y = y if residual is None else y + packed(residual, mask)
    y = y if activation is None else getattr(F, activation)(y)
    whole = x.movedim(1, -1).clone()
    whole[mask] = y
    return whole.movedim(-1, 1)


def outcome(forward, layer, shape, *, with_residual=True, seed=0):
    x, residual = (drawn(*shape, seed=seed + each).mul(2).add(0.5).requires_grad_() for each in range(2))
    layer.zero_grad()
    y = forward(x, residual if with_residual else None)
    y.backward(drawn(*shape, seed=9))
    gradients = {f"d{name}": parameter.grad for name, parameter in layer.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, "dresidual": residual.grad} | gradients | dict(layer.named_buffers())


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


def assert_as_packed(layers, shape, mask, **options):
    ours, native = layers
    found = outcome(lambda x, residual: ours(x, mask, residual=residual), ours, shape, **options)

    def forward(x, residual):
        return by_packing(native, x, mask, residual, ours.activation)

    assert_same(found, outcome(forward, native, shape, **options))


@pytest.mark.parametrize("shape", [SHAPE, (7, 3)], ids=["3-d", "2-d"])
@each_mode
@each_activation
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "plain"])
def test_results_and_gradients_are_torchs_of_the_packed_values(shape, training, activation, with_residual):
    layers = [layer.train(training) for layer in pair(activation=activation)]
    assert_as_packed(layers, shape, mask_of(*shape), with_residual=with_residual)


@each_set_of_arguments
@each_mode
def test_every_set_of_arguments_is_torchs_of_the_packed_values(arguments, training):
    layers = [layer.train(training) for layer in pair(**arguments)]
    for seed in range(3):
        assert_as_packed(layers, SHAPE, mask_of(*SHAPE, seed=seed), seed=seed)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_shape_and_mask_is_torchs_of_the_packed_values(data):
    samples, length = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    flags = data.draw(st.lists(st.booleans(), min_size=samples * length, max_size=samples * length))
    mask = torch.tensor(flags).view(samples, length)
    if mask.sum() == 1:  # torch refuses it
        return
    layers = pair(activation=data.draw(st.sampled_from([None, *ACTIVATIONS])))
    if not mask.any():  # torch counts the batch
        layers[1].num_batches_tracked.sub_(1)
    assert_as_packed(layers, (samples, 3, length), mask, with_residual=data.draw(st.booleans()))


@pytest.mark.parametrize("options", [{"mean": 0.3}, {"mean": 1e4}, {"dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("what", ["y", "dx"])
def test_narrow_results_are_as_accurate_as_torchs_of_the_packed_values(options, what):
    dtype = options.get("dtype", torch.float32)
    x = (drawn(8, 3, 16) + options.get("mean", 0.0)).to(dtype)
    mask, dy = mask_of(8, 3, 16), drawn(8, 3, 16, seed=1, dtype=dtype)
    results = []
    for layer, given_x, given_dy, more in (
        (MaskedBatchNorm1d(3), x, dy, (mask,)),
        (nn.BatchNorm1d(3), packed(x, mask), packed(dy, mask), ()),
    ):
        given_x = given_x.clone().requires_grad_()
        y = layer(given_x, *more)
        y.backward(given_dy)
        results.append({"y": y.detach(), "dx": given_x.grad}[what])
    values = {"y": oracle.batch_norm(packed(x, mask)).y}
    values["dx"] = oracle.batch_norm_gradients(packed(dy, mask), packed(x, mask)).dx
    ours, native = packed(results[0], mask), results[1]
    oracle.assert_as_accurate_as(native=native, ours=ours, oracle=values[what], what=what)


@each_activation
@pytest.mark.parametrize("wanted", ["gradcheck", "gradgradcheck"])
@each_mode
def test_gradients_are_those_of_the_numbers(wanted, activation, training):
    layer, _ = pair(activation=activation)
    layer.train(training)
    start = {name: value.clone() for name, value in layer.state_dict().items()}

    def forward(x, residual, weight, bias):
        state = {name: value.clone() for name, value in start.items()} | {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, state, (x,), {"lengths": LENGTHS, "residual": residual})

    inputs = [drawn(*shape, seed=seed).requires_grad_() for seed, shape in enumerate((SHAPE, SHAPE, (3,), (3,)))]
    assert getattr(torch.autograd, wanted)(forward, inputs)


@each_mode
@pytest.mark.parametrize("given", ["mask", "lengths", "nothing"])
def test_a_full_mask_is_batch_norm(given, training):
    ours = pair(activation="silu")[0].train(training)
    plain = randomize_(steadynorm.BatchNorm1d(3, activation="silu").double()).train(training)
    full = {"mask": torch.ones(4, 5, dtype=torch.bool), "lengths": torch.full((4,), 5)}
    chosen = {given: full[given]} if given in full else {}
    found = outcome(lambda x, residual: ours(x, **chosen, residual=residual), ours, SHAPE)
    assert_same(found, outcome(plain, plain, SHAPE))


@each_mode
def test_lengths_are_the_mask_of_the_first_positions(training):
    mask = torch.arange(5) < LENGTHS[:, None]
    first, second = (pair()[0].train(training) for _ in range(2))
    by_lengths = outcome(lambda x, _: first(x, lengths=LENGTHS), first, SHAPE)
    assert_same(by_lengths, outcome(lambda x, _: second(x, mask), second, SHAPE))


def test_lengths_beyond_the_ends_are_none_and_all():
    layer, x = pair()[0].eval(), drawn(*SHAPE)
    assert torch.equal(
        layer(x, lengths=torch.tensor([9, -2, 0, 3])), layer(x, lengths=torch.tensor([5, 0, 0, 3], dtype=torch.int32))
    )


@each_mode
def test_padding_comes_out_as_it_came_in(training):
    layer, x, mask = pair(activation="relu")[0].train(training), drawn(*SHAPE), mask_of(*SHAPE)
    y = layer(x, mask, residual=drawn(*SHAPE, seed=1))
    assert torch.equal(packed(y, ~mask), packed(x, ~mask))


@each_mode
def test_the_gradient_of_padding_passes_through(training):
    layer, mask, dy = pair(activation="relu")[0].train(training), mask_of(*SHAPE), drawn(*SHAPE, seed=9)
    x, residual = drawn(*SHAPE).requires_grad_(), drawn(*SHAPE, seed=1).requires_grad_()
    layer(x, mask, residual=residual).backward(dy)
    assert torch.equal(packed(x.grad, ~mask), packed(dy, ~mask))
    assert not packed(residual.grad, ~mask).any()


@each_mode
@each_activation
@pytest.mark.parametrize("fault", [NAN, float("inf")])
def test_what_stands_in_padding_reaches_nothing_else(training, activation, fault):
    mask, found = mask_of(*SHAPE), []
    for padding in (0.0, fault):
        layer = pair(activation=activation)[0].train(training)

        def forward(x, residual, layer=layer, padding=padding):
            dirty = [torch.where(mask[:, None], each, padding) for each in (x, residual)]
            return torch.where(mask[:, None], layer(dirty[0], mask, residual=dirty[1]), 0)

        found.append(outcome(forward, layer, SHAPE))
    assert_same(found[1], found[0])


def test_nan_where_it_is_valid_stays_in_its_channel():
    layer, x = pair()[0], drawn(*SHAPE)
    x[0, 1, 0] = NAN
    y = layer(x, lengths=LENGTHS)
    assert y[0, 1].isnan().all()
    assert not y[:, [0, 2]].isnan().any()
    assert layer.running_var.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("arguments", [{}, {"momentum": None}, {"nonfinite": "skip"}], ids=str)
def test_a_mask_without_a_valid_value_moves_nothing(arguments):
    layer, _ = pair(**arguments)
    layer(drawn(*SHAPE), lengths=LENGTHS)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = drawn(*SHAPE, seed=1)
    y = layer(x, torch.zeros(4, 5, dtype=torch.bool))
    assert torch.equal(y, x)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_mask_without_a_valid_value_gives_parameters_a_gradient_of_zero():
    layer, _ = pair(activation="silu")
    layer(drawn(*SHAPE), lengths=torch.zeros(4, dtype=torch.int64)).backward(drawn(*SHAPE, seed=1))
    assert torch.equal(layer.weight.grad, torch.zeros_like(layer.weight))
    assert torch.equal(layer.bias.grad, torch.zeros_like(layer.bias))


def test_a_window_of_masked_batches_is_that_of_the_packed_ones():
    ours, plain = pair(update_every=2)[0], randomize_(steadynorm.BatchNorm1d(3, update_every=2).double())
    for seed in range(4):
        x, mask = drawn(*SHAPE, seed=seed), mask_of(*SHAPE, seed=seed)
        ours(x, mask), plain(packed(x, mask))
    assert_same(dict(ours.named_buffers()), dict(plain.named_buffers()))


def test_one_valid_value_becomes_the_bias():
    layer, x = pair()[0], drawn(*SHAPE)
    y = layer(x, lengths=torch.tensor([0, 1, 0, 0]))
    torch.testing.assert_close(y[1, :, 0], layer.bias)
    assert layer.running_var.isfinite().all()


def test_an_empty_batch_gives_an_empty_result_and_moves_no_estimate():
    layer, _ = pair()
    before = layer.running_var.clone()
    x = torch.empty(0, 3, 5, dtype=torch.float64, requires_grad=True)
    y = layer(x, torch.ones(0, 5, dtype=torch.bool))
    y.sum().backward()
    assert y.shape == x.grad.shape == (0, 3, 5)
    assert torch.equal(layer.running_var, before)


def test_an_evaluation_changes_nothing():
    layer = pair()[0].eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(drawn(*SHAPE), lengths=LENGTHS)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_counts_a_batch_once(use_reentrant):
    layer, plain = pair()[0], pair()[0]
    x, mask = drawn(*SHAPE).requires_grad_(), mask_of(*SHAPE)
    checkpoint(layer, x, mask, use_reentrant=use_reentrant).backward(drawn(*SHAPE, seed=1))
    plain(x, mask)
    assert_same(layer.state_dict(), plain.state_dict())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_does_not_count_a_batch_without_a_valid_value(use_reentrant):
    layer, x = pair()[0], drawn(*SHAPE).requires_grad_()
    checkpoint(layer, x, torch.zeros(4, 5, dtype=torch.bool), use_reentrant=use_reentrant).sum().backward()
    assert layer.num_batches_tracked.item() == 0


class Sequences(nn.Module):
    def __init__(self, **arguments):
        super().__init__()
        self.norms = nn.ModuleList(pair(**arguments)[0] for _ in range(2))

    def forward(self, x, residual, lengths):
        mask = torch.arange(x.shape[2]) < lengths[:, None]
        return self.norms[1](self.norms[0](x, mask), lengths=lengths, residual=residual)


@pytest.mark.parametrize("arguments", [{}, {"update_every": 2, "momentum": None}], ids=str)
@each_mode
def test_a_model_compiles_in_one_graph_into_the_same_numbers(arguments, training):
    model = Sequences(activation="silu", **arguments).train(training)
    eager = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed, lengths in itertools.product(range(2), (LENGTHS, torch.zeros(4, dtype=torch.int64))):
        found = outcome(lambda x, residual, given=lengths: compiled(x, residual, given), model, SHAPE, seed=seed)
        assert_same(
            found, outcome(lambda x, residual, given=lengths: eager(x, residual, given), eager, SHAPE, seed=seed)
        )
    torch._dynamo.reset()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_goes_on_alike(copied):
    layer, _ = pair(activation="silu")
    other = copied(layer)
    x, mask = drawn(*SHAPE), mask_of(*SHAPE)
    assert torch.equal(other(x, mask), layer(x, mask))
    assert torch.equal(other.running_var, layer.running_var)


@pytest.mark.parametrize("arguments", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
def test_checkpoints_load_strictly_in_both_directions(arguments):
    for source, target in (pair(**arguments), reversed(pair(**arguments))):
        state = source.state_dict()
        assert target.load_state_dict(state, strict=True) == ([], [])
        assert list(target.state_dict()) == list(state)


def test_a_layer_is_an_instance_of_torchs():
    assert isinstance(MaskedBatchNorm1d(3), nn.BatchNorm1d)


def test_the_result_has_the_dtype_of_the_input():
    layer, x = MaskedBatchNorm1d(3).bfloat16(), drawn(*SHAPE, dtype=torch.bfloat16)
    for training in (True, False):
        assert layer.train(training)(x, lengths=LENGTHS).dtype == torch.bfloat16
    assert layer.running_mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        (SHAPE, {"mask": torch.ones(4, 5)}, r"mask must be boolean, of shape \(4, 5\) .* got torch.float32 \(4, 5\)"),
        (SHAPE, {"mask": torch.ones(4, 3, 5) > 0}, r"mask must be boolean, of shape \(4, 5\)"),
        ((4, 3), {"mask": torch.ones(4, 5) > 0}, r"mask must be boolean, of shape \(4,\)"),
        (SHAPE, {"lengths": torch.ones(4)}, r"lengths must be integers of shape \(N,\)"),
        (SHAPE, {"lengths": torch.ones(3).long()}, r"lengths must be integers .* got torch.int64 \(3,\)"),
        ((4, 3), {"lengths": torch.ones(4).long()}, r"beside input \(N, C, L\), .* beside \(4, 3\)"),
        (SHAPE, {"mask": torch.ones(4, 5) > 0, "lengths": LENGTHS}, "either mask or lengths must be given, got both"),
        ((4, 3, 5, 2), {"mask": torch.ones(4, 5, 2) > 0}, "expected 2D or 3D input"),
    ],
)
@each_mode
def test_what_does_not_fit_is_refused(shape, given, message, training):
    with pytest.raises(ValueError, match=message):
        MaskedBatchNorm1d(3).train(training)(torch.ones(shape), **given)


@each_mode
def test_a_residual_of_another_shape_is_refused(training):
    with pytest.raises(RuntimeError, match="residual must have the input's shape"):
        MaskedBatchNorm1d(3).train(training)(torch.ones(SHAPE), lengths=LENGTHS, residual=torch.ones(4, 3, 1))


def test_the_repr_shows_whether_ranks_are_synchronized():
    assert repr(MaskedBatchNorm1d(3, synchronized=True)).endswith("activation=None, synchronized=True)")

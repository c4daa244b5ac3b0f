"""Masked batch norm: torch's batch norm of the valid values packed together, and padding that stays as it is."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import steadynorm
from steadynorm.layers import MaskedBatchNorm1d
from steadynorm.ops.reference import ACTIVATIONS
from tests.support import oracle
from tests.support.layers import drawn, randomize_
from tests.support.masked import LENGTHS, SHAPE, assert_same, each_mode, mask_of, outcome, packed, pair

NAN = float("nan")
each_activation = pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
each_set_of_arguments = pytest.mark.parametrize(
    "arguments",
    [{}, {"affine": False}, {"bias": False}, {"track_running_stats": False}, {"momentum": None}],
    ids=str,
)


@pytest.fixture
def each_backend():
    """Plain tensor operations, whatever is chosen."""


def by_packing(native, x, mask, residual, activation):
    y = native(packed(x, mask))
    y = y if residual is None else y + packed(residual, mask)
    y = y if activation is None else getattr(F, activation)(y)
    whole = x.movedim(1, -1).clone()
    whole[mask] = y
    return whole.movedim(-1, 1)


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

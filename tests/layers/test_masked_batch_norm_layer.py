"""Masked batch norm as a layer: what moves its state, compilers, copies, and what it refuses."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import steadynorm
from steadynorm.layers import MaskedBatchNorm1d
from tests.support.layers import drawn, randomize_
from tests.support.masked import LENGTHS, SHAPE, assert_same, each_mode, mask_of, outcome, packed, pair


@pytest.fixture
def each_backend():
    """Plain tensor operations, whatever is chosen."""


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

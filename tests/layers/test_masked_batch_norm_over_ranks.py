"""Masked batch norm on four processes: what one process computes from the batches put together."""

import warnings

import pytest
import torch

from steadynorm.layers import MaskedBatchNorm1d
from tests.support.layers import drawn, randomize_
from tests.support.ranks import SIZES, Collectives, on_ranks, part_of, together

SHAPE = (sum(SIZES), 3, 5)
MASKS = {
    "any": drawn(SHAPE[0], 5, seed=4) > -0.3,
    "nothing on rank 1": (drawn(SHAPE[0], 5, seed=4) > -0.3) & (torch.arange(SHAPE[0]) != SIZES[0])[:, None],
    "nothing": torch.zeros(SHAPE[0], 5, dtype=torch.bool),
    "all": None,
}
NAMES = ("y", "dx", "dresidual", "second", "dweight", "running_mean", "running_var", "num_batches_tracked")


def step(layer, mask, part=lambda whole: whole, run=None):
    """One forward and backward, and the gradient of a gradient penalty, which compilers do not have."""
    x, residual = (part(drawn(*SHAPE, seed=seed) + 3).requires_grad_() for seed in range(2))
    y = (layer if run is None else run)(x, None if mask is None else part(mask), residual=residual)
    dy, inputs = part(drawn(*SHAPE, seed=2)), [x, residual, layer.weight]
    dx, *others = torch.autograd.grad(y, inputs, dy, create_graph=run is None)
    second = torch.autograd.grad(dx.pow(3).sum(), x, materialize_grads=True)[0] if run is None else dx
    found = [y, dx, others[0], second, others[1], *layer.state_dict().values()]
    del found[5:7]  # weight and bias
    return dict(zip(NAMES, (value.detach().clone() for value in found), strict=True))


def layer_for(**arguments):
    return randomize_(MaskedBatchNorm1d(3, activation="silu", **arguments).double())


def compiled():
    layer = layer_for(synchronized=True)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with warnings.catch_warnings():
        # Dynamo itself instantiates an autograd function that it traces.
        warnings.filterwarnings("ignore", ".*should not be instantiated", DeprecationWarning)
        return step(layer, MASKS["any"], part_of, run)


def collectives(**arguments):
    layer, x = layer_for(**arguments), part_of(drawn(*SHAPE)).requires_grad_()
    layer(x, part_of(MASKS["any"]))
    with Collectives() as counted:
        layer(x, part_of(MASKS["any"])).sum().backward()
        layer.eval()(x, part_of(MASKS["any"])).sum().backward()
    return counted.seen


def on_each_rank():
    return {
        **{name: step(layer_for(synchronized=True), mask, part_of) for name, mask in MASKS.items()},
        "alone": step(layer_for(), MASKS["all"], part_of),
        "compiled": compiled(),
        "collectives": collectives(synchronized=True),
        "collectives alone": collectives(),
    }


@pytest.fixture
def each_backend():
    """The processes choose by themselves."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_ranks(on_each_rank, len(SIZES), tmp_path_factory.mktemp("ranks"))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def assert_same(ranks, name, mask, what):
    expected = step(layer_for(), mask)[what]
    found = [each[name][what] for each in ranks]
    if expected.shape == SHAPE:
        assert_close(together(found), expected)
    elif what == "dweight":
        assert_close(sum(found), expected)
    else:
        for each in found:
            assert_close(each, expected)


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("what", NAMES)
def test_ranks_together_are_one_process(ranks, name, what):
    assert_same(ranks, name, MASKS[name], what)


@pytest.mark.parametrize("what", [name for name in NAMES if name != "second"])
def test_a_layer_compiles_in_one_graph_into_the_same_numbers(ranks, what):
    assert_same(ranks, "compiled", MASKS["any"], what)


def test_a_training_step_is_one_collective_each_way_and_an_evaluation_none(ranks):
    for each in ranks:
        assert each["collectives"] == ["all_gather_into_tensor", "all_reduce"]


def test_unless_it_is_asked_to_no_rank_hears_of_the_others(ranks):
    for each in ranks:
        assert each["collectives alone"] == []
    assert not torch.equal(ranks[0]["alone"]["running_mean"], ranks[3]["alone"]["running_mean"])

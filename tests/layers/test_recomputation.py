"""Compiled layers under activation checkpointing: a batch counts once, and what is not checkpointed pays nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import steadynorm
from steadynorm.layers import recomputation
from tests.support.family import FOLLOWING, build, each_member
from tests.support.layers import drawn
from tests.support.versions import skip_before

# Dynamo itself instantiates an autograd function that it traces.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
SHAPE = (5, 3, 2, 3)


@pytest.fixture
def each_backend():
    """A graph holds the same operations, whichever backend runs them."""


@pytest.fixture(autouse=True)
def _compiles_again():
    skip_before((2, 9), "the hooks of checkpointing cannot be asked for")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def assert_trains_alike(run, model, eager, *, steps=3, shape=SHAPE):
    """Compare outputs, gradients and state, step by step, with a copy that is neither compiled nor checkpointed."""
    for seed in range(steps):
        found = []
        for each, module in ((run, model), (eager, eager)):
            x = (drawn(*shape, seed=seed) * (1 + seed) + seed / 2).requires_grad_()
            module.zero_grad()
            y = each(x)
            y.backward(drawn(*shape, seed=8))
            gradients = [x.grad, *(parameter.grad for parameter in module.parameters())]
            found.append([y, *gradients, *(value.clone() for value in module.state_dict().values())])
        for actual, expected in zip(*found, strict=True):
            assert_close(actual, expected)


def call(run, x, how):
    """Run a model as it is, checkpointed in one of two ways, or with hooks that save elsewhere."""
    if how == "plainly":
        return run(x)
    if how == "elsewhere":
        with torch.autograd.graph.save_on_cpu():
            return run(x)
    return checkpoint(run, x, use_reentrant=how == "reentrant")


def by_turns(model, turns, **options):
    """A compiled model, called in one way after the other; for each graph that is made, in which, and if it chooses."""
    turns, graphs, now = iter(turns), [], []

    def backend(graph, inputs):
        from torch._dynamo.backends.registry import lookup_backend  # takes seconds, which no other test should wait

        names = [str(node.target) for node in graph.graph.nodes]
        graphs.append((now[-1], chooses(names)))
        return lookup_backend("aot_eager")(graph, inputs)

    def run(x):
        now.append(next(turns))
        return call(compiled, x, now[-1])

    compiled = torch.compile(model, **{"fullgraph": True, "backend": backend, **options})
    return run, graphs


def chooses(operations):
    return any("unless_recomputing" in name for name in operations)


TURNS = ("not reentrant", "reentrant", "plainly", "elsewhere", "not reentrant", "reentrant", "plainly", "plainly")


@each_member
def test_a_batch_counts_once_however_it_is_run(name):
    layer = build(name, activation="silu")
    run, graphs = by_turns(layer, TURNS)
    assert_trains_alike(run, layer, copy.deepcopy(layer), steps=len(TURNS))
    assert any(choice for _, choice in graphs) == (name in FOLLOWING)
    # What nothing recomputes has a graph of its own, which pays nothing for it; one that holds for all pays nothing.
    assert {choice for turn, choice in graphs if turn == "plainly"} == ({False} if name in FOLLOWING else set())


def test_forward_and_recomputation_are_one_graph_of_their_own():
    layer, turns = build("BatchNorm"), ("plainly", "not reentrant", "plainly")
    run, graphs = by_turns(layer, turns)
    assert_trains_alike(run, layer, copy.deepcopy(layer), steps=len(turns))
    assert graphs == [("plainly", False), ("not reentrant", True)]


@pytest.mark.parametrize(
    "arguments",
    [{"update_every": 2, "nonfinite": "skip"}, {"running": "self_tuned"}, {"momentum": None}],
    ids=["window", "self-tuned", "cumulative"],
)
def test_a_batch_counts_once_however_the_estimates_follow(arguments):
    layer = build("BatchNorm", **arguments)
    run, _ = by_turns(layer, ["not reentrant"] * 3)
    assert_trains_alike(run, layer, copy.deepcopy(layer))


def test_a_batch_counts_once_in_a_network():
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), build("GatedBatchNorm", update_every=2), nn.Tanh(), build("BatchRenorm"), nn.Tanh()
    ).double()
    turns = ["not reentrant"] * 3 + ["reentrant"] * 3
    run, _ = by_turns(model, turns, dynamic=True)
    assert_trains_alike(run, model, copy.deepcopy(model), steps=len(turns))


class Padded(nn.Module):
    """A masked layer with the lengths of one batch."""

    def __init__(self):
        super().__init__()
        self.norm = steadynorm.MaskedBatchNorm1d(3, running="self_tuned").double()

    def forward(self, x):
        return self.norm(x, lengths=torch.tensor([4, 1, 0, 2]))


def test_a_masked_batch_counts_once():
    model = Padded()
    run, _ = by_turns(model, ["not reentrant"] * 3)
    assert_trains_alike(run, model, copy.deepcopy(model), shape=(4, 3, 4))


@pytest.mark.parametrize("name", ["BatchRenorm", "GatedBatchNorm"])
@pytest.mark.parametrize("strict", [True, False])
def test_an_export_without_gradients_keeps_nothing_for_a_recomputation(name, strict):
    layer = build(name)
    with torch.no_grad():
        exported = torch.export.export(layer, (drawn(*SHAPE),), strict=strict)
    assert not chooses([str(node.target) for node in exported.graph.nodes]) and layer._before is None


def test_whether_a_recomputation_is_possible_is_asked_again():
    asked, x = [recomputation.is_possible], torch.ones(2, requires_grad=True)
    x.register_hook(lambda _: asked.append(recomputation.is_possible))
    with torch.autograd.graph.save_on_cpu():
        y = x * x
        asked.append(recomputation.is_possible)
    y.sum().backward()
    assert [*asked, recomputation.is_possible] == [False, True, True, False]
    with pytest.raises(AttributeError, match=r"recomputation' has no attribute 'is_certain'"):
        _ = recomputation.is_certain

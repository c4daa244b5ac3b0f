"""Compiled layers under activation checkpointing: a batch counts once, and what is not checkpointed pays nothing."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import steadynorm
from steadynorm.layers import recomputation
from tests.support.family import build, each_member
from tests.support.layers import drawn
from tests.support.versions import skip_before

# Dynamo itself instantiates an autograd function that it traces.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
SHAPE = (5, 3, 2, 3)
each_mode = pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not-reentrant"])


@pytest.fixture
def each_backend():
    """A graph holds the same operations, whichever backend runs them."""


@pytest.fixture(autouse=True)
def _compiles_anew():
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


def checkpointed(model, *, use_reentrant, **options):
    compiled = torch.compile(model, **{"fullgraph": True, "backend": "aot_eager", **options})
    return lambda x: checkpoint(compiled, x, use_reentrant=use_reentrant)


@each_member
@each_mode
def test_a_batch_counts_once(name, use_reentrant):
    layer = build(name, activation="silu")
    assert_trains_alike(checkpointed(layer, use_reentrant=use_reentrant), layer, copy.deepcopy(layer))


@pytest.mark.parametrize(
    "arguments",
    [{"update_every": 2, "nonfinite": "skip"}, {"running": "self_tuned"}, {"momentum": None}],
    ids=["window", "self-tuned", "cumulative"],
)
def test_a_batch_counts_once_however_the_estimates_follow(arguments):
    layer = build("BatchNorm", **arguments)
    assert_trains_alike(checkpointed(layer, use_reentrant=False), layer, copy.deepcopy(layer))


@each_mode
def test_a_batch_counts_once_in_a_network(use_reentrant):
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), build("GatedBatchNorm", update_every=2), nn.Tanh(), build("BatchRenorm"), nn.Tanh()
    ).double()
    run = checkpointed(model, use_reentrant=use_reentrant, dynamic=True)
    assert_trains_alike(run, model, copy.deepcopy(model))


class Padded(nn.Module):
    """A masked layer with the lengths of one batch."""

    def __init__(self):
        super().__init__()
        self.norm = steadynorm.MaskedBatchNorm1d(3, running="self_tuned").double()

    def forward(self, x):
        return self.norm(x, lengths=torch.tensor([4, 1, 0, 2]))


def test_a_masked_batch_counts_once():
    model = Padded()
    run = checkpointed(model, use_reentrant=False)
    assert_trains_alike(run, model, copy.deepcopy(model), shape=(4, 3, 4))


@each_mode
def test_a_batch_counts_once_with_and_without_checkpointing_by_turns(use_reentrant):
    layer = build("BatchRenorm")
    compiled, eager = torch.compile(layer, fullgraph=True, backend="aot_eager"), copy.deepcopy(layer)
    turns = iter((True, False, True, True, False, False))

    def run(x):
        return checkpoint(compiled, x, use_reentrant=use_reentrant) if next(turns) else compiled(x)

    assert_trains_alike(run, layer, eager, steps=6)


def test_a_batch_counts_once_where_hooks_save_elsewhere():
    layer = build("GatedBatchNorm")
    compiled, eager = torch.compile(layer, fullgraph=True, backend="aot_eager"), copy.deepcopy(layer)

    def run(x):
        with torch.autograd.graph.save_on_cpu():
            return compiled(x)

    assert_trains_alike(run, layer, eager)


def graphs_of(layer, run):
    """Run a layer compiled, and give the names of the operations in each graph that is made."""
    graphs = []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    run(torch.compile(layer, fullgraph=True, backend=backend), drawn(*SHAPE).requires_grad_())
    return graphs


def chooses(graph):
    return any("unless_recomputing" in name for name in graph)


@each_member
def test_a_graph_that_nothing_recomputes_holds_no_choice(name):
    layer = build(name)
    graphs = graphs_of(layer, lambda compiled, x: compiled(x).sum().backward())
    assert len(graphs) == 1 and not chooses(graphs[0])


def test_forward_and_recomputation_are_one_graph_of_their_own():
    def run(compiled, x):
        compiled(x).sum().backward()
        checkpoint(compiled, x, use_reentrant=False).sum().backward()
        compiled(x).sum().backward()

    assert [chooses(graph) for graph in graphs_of(build("BatchNorm"), run)] == [False, True]


@pytest.mark.parametrize("name", ["BatchRenorm", "GatedBatchNorm"])
@pytest.mark.parametrize("strict", [True, False])
def test_an_export_without_gradients_keeps_nothing_for_a_recomputation(name, strict):
    layer = build(name)
    with torch.no_grad():
        exported = torch.export.export(layer, (drawn(*SHAPE),), strict=strict)
    assert not chooses([str(node.target) for node in exported.graph.nodes]) and layer._before is None


def test_whether_a_recomputation_is_possible_is_asked_anew():
    asked, x = [recomputation.is_possible], torch.ones(2, requires_grad=True)
    x.register_hook(lambda _: asked.append(recomputation.is_possible))
    with torch.autograd.graph.save_on_cpu():
        y = x * x
        asked.append(recomputation.is_possible)
    y.sum().backward()
    assert [*asked, recomputation.is_possible] == [False, True, True, False]
    with pytest.raises(AttributeError, match=r"recomputation' has no attribute 'is_certain'"):
        _ = recomputation.is_certain

"""Tracers, compilers, exporters and function transforms see a layer as they see torch's."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import steadynorm
from tests.support.backends import as_chosen
from tests.support.layers import drawn, make_pair, randomize_


class Block(nn.Module):
    """A residual block: convolution, norm with residual and activation in one."""

    def __init__(self, **arguments) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.first = steadynorm.BatchNorm2d(3, activation="silu", **arguments)
        self.second = steadynorm.BatchNorm2d(3, activation="relu", **arguments)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.conv(self.first(self.conv(x))), x)


X = drawn(4, 3, 5, 5, dtype=torch.float32)
DY = drawn(4, 3, 5, 5, seed=1, dtype=torch.float32)


def block(**arguments) -> Block:
    made = randomize_(Block(**arguments))
    # Small differences in evaluation order must not be blown up by a large gain.
    made.conv.weight.data.mul_(0.2)
    return made


def outcome(model, x=X, dy=DY, *, state_of=None):
    """Result, gradients and buffers of one forward and backward."""
    module = model if state_of is None else state_of
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = model(x)
    y.backward(dy)
    gradients = {f"d{name}": parameter.grad for name, parameter in module.named_parameters()}
    return {"y": y.detach(), "dx": x.grad} | gradients | {n: b.clone() for n, b in module.named_buffers()}


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5, msg=lambda t, n=name: f"{n}: {t}")


def test_fx_traces_an_evaluating_model_into_the_same_numbers():
    model = block().eval()
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(X), model(X))


def test_fx_traces_down_to_torchs_batch_norm():
    traced = torch.fx.symbolic_trace(nn.Sequential(steadynorm.BatchNorm2d(3)).eval())
    assert torch.nn.functional.batch_norm in [node.target for node in traced.graph.nodes]


@pytest.mark.parametrize("strict", [False, True])
def test_an_evaluating_model_with_a_residual_exports(strict):
    model = block().eval()
    exported = torch.export.export(model, (X,), strict=strict)
    torch.testing.assert_close(exported.module()(X), model(X))


def test_an_export_takes_any_batch_size():
    model = block().eval()
    exported = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    longer = torch.cat([X, X[:3]])
    torch.testing.assert_close(exported.module()(longer), model(longer))


def test_an_export_holds_no_operation_of_our_own():
    exported = torch.export.export(block().eval(), (X,))
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert any("batch_norm" in target for target in targets)
    assert all(target.startswith("aten.") for target in targets), targets


# Dynamo itself instantiates an autograd function that it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("arguments", [{}, {"momentum": None}], ids=["exponential", "cumulative"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@as_chosen
def test_a_model_compiles_in_one_graph_into_the_same_numbers(training, arguments):
    model = block(**arguments).train(training)
    eager = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        x = drawn(4, 3, 5, 5, seed=seed, dtype=torch.float32)
        assert_same(outcome(compiled, x, state_of=model), outcome(eager, x))
    torch._dynamo.reset()


def test_torchscript_traces_an_evaluating_layer():
    layer = make_pair((4, 3, 5, 5))[0].float().eval()
    traced = torch.jit.trace(layer, X)
    torch.testing.assert_close(traced(X), layer(X))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_functional_call_uses_the_tensors_passed_in(training):
    results = []
    for layer in make_pair((6, 3)):
        layer.train(training)
        replaced = {name: value.clone() for name, value in layer.state_dict().items()}
        replaced["weight"] *= 2
        replaced["running_mean"] += 1
        own = {name: value.clone() for name, value in layer.state_dict().items()}
        results.append([torch.func.functional_call(layer, replaced, (drawn(6, 3),)), *replaced.values()])
        assert all(torch.equal(value, own[name]) for name, value in layer.state_dict().items())
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_func_grad_gives_torchs_gradients_and_buffers():
    results = []
    for layer in make_pair((6, 3)):

        def loss(parameters, x, buffers, layer=layer):
            y = torch.func.functional_call(layer, (parameters, buffers), (x,))
            return (y.pow(3) * drawn(6, 3)).sum(), buffers

        parameters = {name: value.detach() for name, value in layer.named_parameters()}
        buffers = {name: value.clone() for name, value in layer.named_buffers()}
        (gradients, dx), after = torch.func.grad(loss, argnums=(0, 1), has_aux=True)(
            parameters, drawn(6, 3, seed=3), buffers
        )
        results.append([dx, *gradients.values(), *after.values()])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_func_grad_of_a_residual_model_is_autograds():
    model = block(track_running_stats=False)
    expected = outcome(model)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    gradients = torch.func.grad(lambda p: (torch.func.functional_call(model, p, (X,)) * DY).sum())(parameters)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[f"d{name}"], rtol=1e-4, atol=1e-5)


def test_create_graph_does_not_change_a_residual_models_gradients():
    model = block().double()
    x, dy = X.double().requires_grad_(), DY.double()
    wanted = [x, *model.parameters()]
    plain = torch.autograd.grad(model(x), wanted, dy)
    with_graph = torch.autograd.grad(model(x), wanted, dy, create_graph=True)
    for one, other in zip(with_graph, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(use_reentrant):
    model = block(track_running_stats=False)
    expected = outcome(model)
    actual = outcome(lambda x: checkpoint(model, x, use_reentrant=use_reentrant), state_of=model)
    assert_same(actual, expected)


def test_swapping_torchs_layers_for_ours_trains_the_same_network():
    def network(norm):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), norm.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))

    states = []
    for norm in (steadynorm, nn):
        model = network(norm).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for seed in range(5):
            optimizer.zero_grad()
            x, target = drawn(8, 3, 5, 5, seed=seed), drawn(8, 2, seed=seed + 20)
            nn.functional.mse_loss(model(x), target).backward()
            optimizer.step()
        states.append(model.state_dict() | {"evaluated": model.eval()(drawn(8, 3, 5, 5, seed=77))})
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-9, atol=1e-9, msg=lambda t, n=name: f"{n}: {t}")


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    "rewrite",
    [
        lambda layer: prune.l1_unstructured(layer, "weight", amount=1),
        lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    ],
    ids=["pruned", "parametrized"],
)
def test_a_weight_that_is_no_longer_a_parameter_is_torchs(rewrite, training):
    found = []
    for layer in (steadynorm.BatchNorm2d(3), nn.BatchNorm2d(3)):
        nn.init.normal_(layer.weight, mean=1.0, generator=torch.Generator().manual_seed(0))
        rewrite(layer.train(training))
        y = layer(X)
        y.backward(DY)
        found.append([y, *(parameter.grad for parameter in layer.parameters())])
    for ours, native in zip(*found, strict=True):
        torch.testing.assert_close(ours, native)

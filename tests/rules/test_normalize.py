"""The autograd function: gradients of both orders, and what it keeps alive."""

import itertools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from steadynorm.ops.reference import ACTIVATIONS
from steadynorm.rules import BatchNormRule, normalize
from steadynorm.rules.rule import CenterScaleShift
from tests.support import oracle
from tests.support.cases import each_case, make_inputs

RULE = BatchNormRule(oracle.EPS)
ROLES = ("x", "weight", "bias", "residual")
each_activation = pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
each_set_of_arguments = pytest.mark.parametrize(
    "absent", [(), ("weight",), ("bias",), ("residual",), ("weight", "bias", "residual")], ids="-".join
)
DY = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def leaves(absent: tuple[str, ...] = ()) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(7)
    shapes = {"x": (4, 3, 2), "weight": (3,), "bias": (3,), "residual": (4, 3, 2)}
    drawn = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    return {n: None if n in absent else tensor.requires_grad_() for n, tensor in drawn.items()}


def ours(x, weight, bias, residual, activation=None):
    return normalize(x, RULE, weight, bias, residual=residual, activation=activation)[0]


def by_torch(x, weight, bias, residual, activation=None):
    pre = F.batch_norm(x, None, None, weight, bias, True, eps=oracle.EPS)
    pre = pre if residual is None else pre + residual
    return pre if activation is None else getattr(F, activation)(pre)


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@each_activation
@each_set_of_arguments
def test_gradients_pass_gradcheck(absent, activation):
    assert torch.autograd.gradcheck(lambda *args: ours(*args, activation), tuple(leaves(absent).values()))


@each_activation
@each_set_of_arguments
def test_second_gradients_pass_gradgradcheck(absent, activation):
    assert torch.autograd.gradgradcheck(lambda *args: ours(*args, activation), tuple(leaves(absent).values()))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("frozen", [f for n in range(4) for f in itertools.combinations(ROLES, n)], ids="-".join)
def test_frozen_inputs_leave_the_others_their_gradients(frozen, create_graph):
    def gradients(function):
        inputs = leaves()
        for name in frozen:
            inputs[name].requires_grad_(False)
        wanted = [tensor for tensor in inputs.values() if tensor.requires_grad]
        return torch.autograd.grad(function(*inputs.values(), "silu"), wanted, DY, create_graph=create_graph)

    assert_same(gradients(ours), gradients(by_torch))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        lambda f, x, w, b, r: f(torch.tanh(r), w, b, r, "silu"),
        lambda f, x, w, b, r: f(x, w, b, x, "silu"),
        lambda f, x, w, b, r: f(x, w, b, torch.tanh(x), "silu"),
        lambda f, x, w, b, r: f(f(x, w, b, r, "silu"), w, b, None, "silu"),
        lambda f, x, w, b, r: f(x * w[:, None], w, b, r, "silu"),
    ],
    ids=["x-from-residual", "x-is-residual", "residual-from-x", "layer-twice", "x-from-weight"],
)
def test_inputs_that_depend_on_each_other_are_counted_once(model, create_graph):
    def gradients(function):
        inputs = leaves()
        y = model(function, *inputs.values())
        return torch.autograd.grad(y, list(inputs.values()), DY, create_graph=create_graph, materialize_grads=True)

    assert_same(gradients(ours), gradients(by_torch))


def test_the_gradient_of_a_gradient_penalty_is_torchs():
    def gradients(function):
        inputs = leaves()
        hidden = function(torch.tanh(inputs["residual"]), *list(inputs.values())[1:], "silu")
        first = torch.autograd.grad(hidden, inputs["residual"], DY, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), [inputs[n] for n in ROLES[1:]], materialize_grads=True)

    assert_same(gradients(ours), gradients(by_torch))


@each_activation
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
def test_only_the_inputs_and_numbers_per_channel_are_kept_for_the_backward(activation, with_residual):
    """Without an activation not even the residual: its gradient is dy."""
    inputs = leaves(() if with_residual else ("residual",))
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours(*inputs.values(), activation)
    large = [tensor for tensor in kept if tensor.shape != (3,)]
    expected = [inputs["x"]] + [inputs["residual"]] * (with_residual and activation is not None)
    assert [tensor.data_ptr() for tensor in large] == [tensor.data_ptr() for tensor in expected]


def test_no_tensor_is_kept_beside_the_saved_ones():
    y = ours(*leaves().values(), "relu")
    assert not [name for name, kept in vars(y.grad_fn).items() if isinstance(kept, (torch.Tensor, list, tuple))]


def test_moments_come_back_without_gradient():
    _, moments = normalize(leaves()["x"], RULE, None, None)
    assert not moments.mean.requires_grad
    assert not moments.var.requires_grad


@each_case
def test_moments_are_those_of_the_batch(case):
    x = make_inputs(case).x
    _, moments = normalize(x, RULE, None, None)
    expected = oracle.batch_norm(x)
    count = x.numel() // x.shape[1]
    mean, var_unbiased = (torch.zeros_like(moments.mean) for _ in range(2))
    F.batch_norm(x, mean, var_unbiased, training=True, momentum=1.0)
    oracle.assert_as_accurate_as(native=mean, ours=moments.mean, oracle=expected.mean, what="mean")
    oracle.assert_as_accurate_as(
        native=var_unbiased, ours=moments.var_unbiased, oracle=expected.var_unbiased, what="unbiased var"
    )
    assert moments.count == count


def test_the_gradient_of_a_sum_without_activation_is_zero():
    """Batch norm removes whatever is common to a channel; so a test whose loss is a sum could see nothing."""
    inputs = leaves(("residual",))
    dx, dweight = torch.autograd.grad(ours(*inputs.values()).sum(), [inputs["x"], inputs["weight"]])
    assert max(dx.abs().max(), dweight.abs().max()) < 1e-13


def test_a_backward_from_an_expanded_gradient_is_torchs():
    def gradient(function):
        inputs = leaves()
        y = function(*inputs.values(), "silu")
        return torch.autograd.grad((y * y[:1]).mean(), list(inputs.values()))

    assert_same(gradient(ours), gradient(by_torch))


def test_the_graph_is_freed_after_a_backward():
    inputs = leaves()
    y = ours(*inputs.values(), "relu")
    y.backward(DY)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(DY)


def test_the_backward_may_run_twice_when_the_graph_is_retained():
    inputs = leaves()
    y = ours(*inputs.values(), "relu")
    first = torch.autograd.grad(y, inputs["x"], DY, retain_graph=True)
    assert_same(torch.autograd.grad(y, inputs["x"], DY), first)


def test_an_input_changed_before_the_backward_is_noticed():
    inputs = leaves(("residual",))
    x = inputs["x"] * 1
    y = ours(x, inputs["weight"], inputs["bias"], None)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(DY)


@dataclass(frozen=True)
class Elsewhere:
    """A rule whose center is not the mean but half of it: scale = weight·var, shift = bias."""

    def forward(self, moments, *parameters):
        return CenterScaleShift(moments.mean / 2, parameters[0] * moments.var, parameters[1])

    def backward(self, gradient, moments, *parameters):
        d_var = gradient.scale * parameters[0]
        return gradient.center / 2, d_var, (gradient.scale * moments.var, gradient.shift)


def test_a_rule_may_center_elsewhere_than_on_the_mean():
    inputs = [tensor for tensor in leaves(("residual",)).values() if tensor is not None]
    assert torch.autograd.gradcheck(lambda *given: normalize(given[0], Elsewhere(), *given[1:])[0], inputs)

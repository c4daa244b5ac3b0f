"""Every transform of every layer: torch.func, forward mode, mapped backwards, and derivatives of derivatives."""

import functools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

import steadynorm
from steadynorm import backend
from steadynorm.functional import gated_batch_norm
from steadynorm.statistics import measure
from tests.support.layers import drawn, randomize_

C, EPS = 3, 1e-5
ACTIVATIONS = {None: lambda y: y, "relu": F.relu, "leaky_relu": lambda y: F.leaky_relu(y, 0.01), "silu": F.silu}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"  # torch's own forward mode, at its first use
)


@dataclass(frozen=True)
class Setting:
    backend: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    tolerance: float


SMALL, LARGE = (4, C), (192, C, 16, 16)
SETTINGS = {
    "formulas": Setting("reference", torch.float64, SMALL, 1e-9),
    "torch": Setting("auto", torch.float64, SMALL, 1e-9),
    "kernels": Setting("numba", torch.float32, SMALL, 2e-3),
    "large": Setting("auto", torch.float32, LARGE, 2e-3),
}


@pytest.fixture
def each_backend():
    """The tests here say themselves what they run with."""


def stored_in(layer: nn.Module) -> tuple[Tensor, Tensor]:
    return layer.running_mean.double(), layer.running_var.double()


def affine(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    mean, var = (each.view(-1, *[1] * (x.dim() - 2)) for each in (mean, var))
    return (x - mean) / (var + EPS).sqrt()


def batch_norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True, eps=EPS)


def renorm(layer: nn.Module, x: Tensor) -> Tensor:
    """r and d are constants; the layer's bounds are r in [1/2, 2] and |d| at most 1."""
    mean, var = stored_in(layer)
    batch, deviation = measure(x.detach()), (var + EPS).sqrt()
    r = ((batch.var + EPS).sqrt() / deviation).clamp(1 / 2, 2)
    d = ((batch.mean - mean) / deviation).clamp(-1, 1)
    return affine(batch_norm(x), -d / r, 1 / r.square() - EPS)


def gated(layer: nn.Module, x: Tensor) -> Tensor:
    """With g = 0.3, whatever the batch."""
    dims = [dim for dim in range(x.dim()) if dim != 1]
    (mean, var), (batch_var, batch_mean) = stored_in(layer), torch.var_mean(x, dims, correction=0)
    mixed = 0.7 * var + 0.3 * batch_var + 0.21 * (batch_mean - mean).square()
    return affine(x, 0.7 * mean + 0.3 * batch_mean, mixed)


def masked(layer: nn.Module, x: Tensor) -> Tensor:
    return torch.cat((batch_norm(x[:-1]), torch.zeros_like(x[-1:])))


def evaluating(layer: nn.Module, x: Tensor) -> Tensor:
    return affine(x, *stored_in(layer))


RENORM = {"warmup_steps": 0, "ramp_steps": 0, "r_max": 2.0, "d_max": 1.0}
# name -> class, arguments, what training and evaluation do to x before weight and bias
KINDS = {
    "plain": ("BatchNorm", {"track_running_stats": False}, lambda _, x: batch_norm(x), lambda _, x: batch_norm(x)),
    "tracking": ("BatchNorm", {}, lambda _, x: batch_norm(x), evaluating),
    "renorm": ("BatchRenorm", RENORM, renorm, evaluating),
    "gated": ("GatedBatchNorm", {"gate": 0.3}, gated, gated),
    "ghost": (
        "GhostBatchNorm",
        {"ghost_batch_size": 2},
        lambda _, x: torch.cat([batch_norm(part) for part in x.tensor_split(max(1, len(x) // 2))]),
        evaluating,
    ),
    "frozen": ("FrozenBatchNorm", {"freeze_affine": False}, evaluating, evaluating),
    "masked": ("MaskedBatchNorm", {}, masked, lambda layer, x: torch.cat((evaluating(layer, x[:-1]), 0 * x[-1:]))),
}


class Case:
    """A layer as a function of one vector that holds x, residual, weight and bias; and the same by its equations."""

    def __init__(self, kind: str, training: bool, activation: str | None, setting: Setting) -> None:
        name, arguments, *self.equations = KINDS[kind]
        dimensions = "1d" if name == "MaskedBatchNorm" or len(setting.shape) < 4 else "2d"
        cls = getattr(steadynorm.layers, f"{name}{dimensions}")
        self.layer = randomize_(cls(C, **arguments, activation=activation).double()).to(setting.dtype).train(training)
        self.training, self.activation, self.shape = training, activation, setting.shape
        if dimensions == "1d" and len(self.shape) > 3:
            self.shape = (*self.shape[:2], self.shape[2] * self.shape[3])
        if name == "GhostBatchNorm" and len(self.shape) > 2:
            self.layer.ghost_batch_size = 2
        self.valid = torch.ones(self.shape[0], *self.shape[2:], dtype=torch.bool)
        self.valid[-1] = False
        count = torch.Size(self.shape).numel()
        self.sizes = (count, count, C, C)

    def point(self) -> tuple[Tensor, Tensor, Tensor]:
        """Give where to differentiate, and a direction of the argument and one of the result."""
        return drawn(sum(self.sizes), seed=1), drawn(sum(self.sizes), seed=2), drawn(self.sizes[0], seed=3)

    def parts(self, z: Tensor) -> tuple[Tensor, ...]:
        x, residual, weight, bias = z.split(self.sizes)
        return x.view(self.shape), residual.view(self.shape), weight, bias

    def ours(self, z: Tensor) -> Tensor:
        x, residual, weight, bias = self.parts(z)
        taking_part = (0 * z[0]).detach()
        state = {name: value + taking_part.to(value.dtype) for name, value in self.layer.named_buffers()}
        mask = {"mask": self.valid} if isinstance(self.layer, steadynorm.layers.MaskedBatchNorm1d) else {}
        named = {"residual": residual} | mask
        return torch.func.functional_call(self.layer, state | {"weight": weight, "bias": bias}, (x,), named).flatten()

    def expected(self, z: Tensor) -> Tensor:
        x, residual, weight, bias = self.parts(z)
        normalized = self.equations[0 if self.training else 1](self.layer, x)
        weight, bias = (each.view(-1, *[1] * (x.dim() - 2)) for each in (weight, bias))
        y = ACTIVATIONS[self.activation](normalized * weight + bias + residual)
        if isinstance(self.layer, steadynorm.layers.MaskedBatchNorm1d):
            y = torch.cat((y[:-1], x[-1:]))
        return y.flatten()


# Each: a function, where to take it, and two directions (of the argument and of the result), to the derivative.
def by_dual_numbers(f, z, v, u):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(z, v))).tangent


def by_batched_gradients(f, z, v, u):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(f(z), z, torch.stack((u, 2 * u)), is_grads_batched=True)[0][1] / 2


def by_batched_second_gradients(f, z, v, u):
    z = z.clone().requires_grad_()
    twice = torch.autograd.grad(f(z), z, torch.stack((u, 2 * u)), is_grads_batched=True, create_graph=True)[0]
    return torch.autograd.grad(twice.pow(2).sum(), z)[0] / 5


def by_vmap(f, z, v, u):
    return torch.func.vmap(f)(torch.stack((z, z + v)))[1]


def by_vmapped_gradients(f, z, v, u):
    return torch.func.vmap(torch.func.grad(lambda z: (f(z) * u).sum()))(torch.stack((v, z)))[1]


def vjp_of(f, z, u):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(f(z), z, u)[0]


def jvp_of(f, z, v):
    """By the derivative of u·J with respect to u, so that nothing of forward mode is asked."""
    z, u = z.clone().requires_grad_(), torch.zeros_like(f(z), requires_grad=True)
    (row,) = torch.autograd.grad(f(z), z, u, create_graph=True)
    return torch.autograd.grad(row, u, v)[0]


def second_gradient_of(f, z, u):
    z = z.clone().requires_grad_()
    (row,) = torch.autograd.grad(f(z), z, u, create_graph=True)
    return torch.autograd.grad(row.pow(2).sum(), z)[0]


def cubed(f, u):
    return lambda z: (f(z).pow(3) * u).sum()


jacobian, hessian = torch.autograd.functional.jacobian, torch.autograd.functional.hessian
# name -> how our function is transformed, and which plain derivative of the equations it is to be
ANY_SIZE = {
    "vjp": (lambda f, z, v, u: torch.func.vjp(f, z)[1](u)[0], "vjp"),
    "grad": (lambda f, z, v, u: torch.func.grad(lambda z: (f(z) * u).sum())(z), "vjp"),
    "jvp": (lambda f, z, v, u: torch.func.jvp(f, (z,), (v,))[1], "jvp"),
    "dual": (by_dual_numbers, "jvp"),
    "vmap": (by_vmap, "value"),
    "vmap-grad": (by_vmapped_gradients, "vjp"),
    "batched-grad": (by_batched_gradients, "vjp"),
    "batched-second-grad": (by_batched_second_gradients, "second"),
}
SMALL_ONLY = {
    "jacrev": (lambda f, z, v, u: torch.func.jacrev(f)(z), "jacobian"),
    "jacfwd": (lambda f, z, v, u: torch.func.jacfwd(f)(z), "jacobian"),
    "jacobian": (lambda f, z, v, u: jacobian(f, z, vectorize=True), "jacobian"),
    "hessian": (lambda f, z, v, u: torch.func.hessian(cubed(f, u))(z), "hessian"),
    "jacrev-grad": (lambda f, z, v, u: torch.func.jacrev(torch.func.grad(cubed(f, u)))(z), "hessian"),
    "batched-hessian": (lambda f, z, v, u: hessian(cubed(f, u), z, vectorize=True), "hessian"),
}
TRANSFORMS = ANY_SIZE | SMALL_ONLY
EXPECTED = {
    "value": lambda f, z, v, u: f(z + v),
    "vjp": lambda f, z, v, u: vjp_of(f, z, u),
    "jvp": lambda f, z, v, u: jvp_of(f, z, v),
    "second": lambda f, z, v, u: second_gradient_of(f, z, u),
    "jacobian": lambda f, z, v, u: jacobian(f, z),
    "hessian": lambda f, z, v, u: hessian(cubed(f, u), z),
}


@functools.cache
def expected(kind: str, training: bool, activation: str | None, shape: tuple[int, ...], what: str) -> Tensor:
    case = Case(kind, training, activation, Setting("reference", torch.float64, shape, 0.0))
    return EXPECTED[what](case.expected, *case.point())


CASES = [
    pytest.param(setting, transform, id=f"{name}-{transform}")
    for name, setting in SETTINGS.items()
    for transform in (ANY_SIZE if setting.shape is LARGE else TRANSFORMS)
]


@pytest.mark.parametrize(("setting", "transform"), CASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_transform_of_a_layer_is_the_derivative_of_its_equations(kind, training, setting, transform):
    derivative, what = TRANSFORMS[transform]
    for activation in ("silu",) if setting.shape is LARGE or transform in SMALL_ONLY else ("relu", None):
        case = Case(kind, training, activation, setting)
        with backend(setting.backend):
            found = derivative(case.ours, *(each.to(setting.dtype) for each in case.point()))
        right = expected(kind, training, activation, setting.shape, what)
        error = (found.double() - right).norm() / right.norm()
        assert error < setting.tolerance, (activation, error)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap], ids=["grad", "vmap"])
@pytest.mark.parametrize("kind", ["tracking", "renorm", "gated", "ghost", "masked"])
def test_running_estimates_from_outside_are_refused_before_anything_moves(kind, transform):
    case = Case(kind, True, None, SETTINGS["formulas"])
    named = {"mask": case.valid} if kind == "masked" else {}
    before = {name: buffer.clone() for name, buffer in case.layer.named_buffers()}
    with pytest.raises(RuntimeError, match=r"BatchNorm1d|Renorm1d: .*running_mean from outside.*functional_call"):
        transform(lambda x: case.layer(x, **named).sum())(
            drawn(2, *SMALL) if transform is torch.func.vmap else drawn(*SMALL)
        )
    for name, buffer in case.layer.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_running_estimates_of_an_outer_transform_are_outside_of_an_inner_one():
    layer = steadynorm.BatchNorm1d(C).double()
    buffers = {name: torch.stack((buffer, buffer)) for name, buffer in layer.named_buffers()}

    def inner(buffers, x):
        return torch.func.grad(lambda x: torch.func.functional_call(layer, buffers, (x,)).sum())(x)

    with pytest.raises(RuntimeError, match=r"got running_mean from outside"):
        torch.func.vmap(inner)(buffers, drawn(2, *SMALL))


def test_a_window_of_batches_is_refused_before_anything_moves():
    layer = steadynorm.BatchNorm1d(C, update_every=2).double()
    with pytest.raises(RuntimeError, match=r"BatchNorm1d: .* no window of batches.*update_every=2. Use update_every=1"):
        torch.func.grad(lambda x: layer(x).sum())(drawn(*SMALL))
    assert layer.num_batches_tracked == 0


def test_mapped_running_estimates_each_follow_their_own_batch():
    layer, x = steadynorm.BatchNorm1d(C).double(), drawn(2, *SMALL)
    buffers = {name: torch.stack((buffer, buffer)) for name, buffer in layer.named_buffers()}
    torch.func.vmap(lambda b, x: torch.func.functional_call(layer, b, (x,)))(buffers, x)
    for at in range(2):
        native = nn.BatchNorm1d(C).double()
        native(x[at])
        for name, buffer in native.named_buffers():
            torch.testing.assert_close(buffers[name][at], buffer)


@pytest.mark.filterwarnings("ignore:Please use `torch.vmap`:FutureWarning")  # what gradcheck of torch 2.6 calls
def test_a_layer_that_meets_small_batches_can_be_differentiated_twice():
    mean, var, noise = drawn(C, seed=5), drawn(C, seed=6).abs(), torch.tensor([0.5]).double()

    def forward(x, weight, bias):
        stored = {"noise": noise, "gate": 0.3, "samples": 2, "activation": "silu"}
        return gated_batch_norm(x, mean.clone(), var.clone(), weight, bias, **stored)[0]

    inputs = [drawn(*SMALL).requires_grad_(), drawn(C, seed=1).requires_grad_(), drawn(C, seed=2).requires_grad_()]
    assert torch.autograd.gradcheck(forward, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(forward, inputs)

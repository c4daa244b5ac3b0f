"""Batch norm in one compiled call each way: exact, what the rule gives between kernels, and at home in autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from steadynorm import BatchNorm2d, backend, functional
from steadynorm.ops import _numba
from steadynorm.ops.dispatch import choose_path, is_fusable
from steadynorm.ops.reference import ACTIVATIONS
from steadynorm.rules import BatchNormRule, normalize_fused
from steadynorm.rules.fused import _Fused
from tests.support import oracle
from tests.support.cases import CASES, FAULTY_CASES, LONG_CASES, compiled, each_compiled, make_inputs, reads_residual
from tests.support.kernels import assert_as_accurate_as_torchs

SUPPORTED = [case for case in (*CASES, *LONG_CASES) if _numba.unsupported_reason(make_inputs(case).x) is None]
X = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))
DY = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(1))


def call(x, weight=None, bias=None, residual=None, activation=None, running=(None, None), momentum=0.1):
    running = dict(zip(("running_mean", "running_var"), running, strict=True))
    common = {"residual": residual, "activation": activation, "momentum": momentum}
    return normalize_fused(x, BatchNormRule(oracle.EPS), weight, bias, **running, **common)[0]


def by_torch(x, weight=None, bias=None, residual=None, activation=None, running=(None, None), momentum=0.1):
    pre = F.batch_norm(x, *running, weight, bias, True, momentum, oracle.EPS)
    pre = pre if residual is None else pre + residual
    return pre if activation is None else getattr(F, activation)(pre)


def leaves(*absent):
    drawn = {"x": X, "weight": X[0, :, 0, 0] + 1, "bias": X[1, :, 0, 0], "residual": X.flip(0)}
    return {name: None if name in absent else tensor.clone().requires_grad_() for name, tensor in drawn.items()}


def gradients_of(y, inputs, dy, **options):
    named = {name: tensor for name, tensor in inputs.items() if tensor is not None and tensor.requires_grad}
    return dict(zip(named, torch.autograd.grad(y, list(named.values()), dy, **options), strict=True))


@each_compiled
def test_all_is_as_accurate_as_torchs(case, activation, with_residual):
    inputs = make_inputs(case)
    given = {"x": inputs.x, "weight": inputs.weight, "bias": inputs.bias}
    given |= {"residual": inputs.residual} if with_residual else {}
    given = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
    given["x"] = inputs.x.requires_grad_()  # a clone would not lie as it does
    y = call(**given, activation=activation, running=estimates(case) if activation == "relu" else (None, None))
    gradients = {f"d{name}": gradient for name, gradient in gradients_of(y, given, inputs.dy).items()}
    inputs.x.requires_grad_(False)
    residual = inputs.residual if with_residual else None
    assert_as_accurate_as_torchs(y.detach(), gradients, inputs, residual, activation)
    assert (y.shape, y.dtype) == (inputs.x.shape, inputs.x.dtype)


def estimates(case):
    return torch.linspace(-1, 1, case.shape[1]), torch.linspace(0.5, 2, case.shape[1])


def given_with_relu(case):
    """What the kernels above were compiled for."""
    inputs = make_inputs(case)
    residual = inputs.residual if reads_residual(case)[-1] else None
    return {"weight": inputs.weight, "bias": inputs.bias, "residual": residual, "activation": "relu"}


@pytest.mark.parametrize("case", [compiled(case) for case in SUPPORTED])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
def test_running_estimates_are_as_accurate_as_torchs(case, momentum):
    x = make_inputs(case).x
    start, ours, native = (estimates(case) for _ in range(3))
    by_torch(x, running=native, momentum=momentum)
    call(x, **given_with_relu(case), running=ours, momentum=momentum)
    batch = oracle.batch_norm(x)
    for before, now, now_native, new in zip(start, ours, native, (batch.mean, batch.var_unbiased), strict=True):
        expected = (1 - momentum) * oracle.to_numpy(before) + momentum * new
        oracle.assert_as_accurate_as(native=now_native, ours=now, oracle=expected, what="running")


@pytest.mark.parametrize("case", FAULTY_CASES, ids=lambda case: case.id)
def test_a_value_that_is_no_number_comes_out_as_torchs(case):
    x, dy = make_inputs(case).x, make_inputs(case).dy
    found = []
    for function in (call, by_torch):
        running = torch.zeros(3), torch.ones(3)
        leaf = x.clone().requires_grad_()
        y = function(leaf, **given_with_relu(case), running=running)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, dy), *running))
    for ours, native in zip(*found, strict=True):
        assert torch.equal(ours.isnan(), native.isnan())
        assert torch.equal(ours.isinf(), native.isinf())


@pytest.mark.parametrize("absent", [("weight",), ("bias",), ("weight", "bias", "residual")], ids="-".join)
def test_what_is_absent_has_no_gradient(absent):
    found = []
    for function in (call, by_torch):
        inputs = leaves(*absent)
        found.append(gradients_of(function(**inputs, activation="relu"), inputs, DY))
    assert found[0].keys() == found[1].keys() == leaves().keys() - set(absent)
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], msg=name)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "residual"])
def test_frozen_inputs_leave_the_others_their_gradients(frozen):
    found = []
    for function in (call, by_torch):
        inputs = leaves()
        inputs[frozen].requires_grad_(False)
        found.append(gradients_of(function(**inputs), inputs, DY))
    assert frozen not in found[0]
    for name in found[1]:
        torch.testing.assert_close(found[0][name], found[1][name], msg=name)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_the_gradient_of_a_gradient_penalty_is_torchs(activation):
    found = []
    for function in (call, by_torch):
        inputs = leaves()
        first = gradients_of(function(**inputs, activation=activation), inputs, DY, create_graph=True)
        penalty = first["x"].square().sum() + (first["residual"] * X).sum()
        found.append(gradients_of(penalty, inputs, None, materialize_grads=True))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_a_batch_that_needs_no_gradient_has_no_graph():
    assert call(X, activation="relu").grad_fn is None
    with torch.no_grad():
        assert call(**leaves()).grad_fn is None


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
def test_only_the_inputs_and_numbers_per_channel_are_kept_for_the_backward(activation, with_residual):
    """Without an activation not even the residual: its gradient is dy."""
    inputs = leaves() if with_residual else leaves("residual")
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = call(**inputs, activation=activation)
    large = [tensor for tensor in kept if tensor.numel() > 2 * 3]
    expected = [inputs["x"]] + [inputs["residual"]] * (with_residual and activation is not None)
    assert [tensor.data_ptr() for tensor in large] == [tensor.data_ptr() for tensor in expected]
    beside = [each for value in vars(y.grad_fn).values() for each in (value if isinstance(value, tuple) else (value,))]
    assert not [each for each in beside if isinstance(each, (torch.Tensor, list, tuple))]


def test_a_copy_that_the_kernels_need_is_not_kept():
    """Memory with gaps is copied for the kernel; what stays is x itself."""
    x = X[:, :, ::2].requires_grad_()
    kept = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        call(x)
    assert x.data_ptr() in [tensor.data_ptr() for tensor in kept]


def test_the_graph_is_freed_after_a_backward():
    y = call(**leaves(), activation="relu")
    y.backward(DY)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward(DY)


def test_an_input_changed_before_the_backward_is_noticed():
    inputs = leaves()
    inputs["x"] = inputs["x"] * 1
    y = call(**inputs)
    with torch.no_grad():
        inputs["x"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(DY)


def test_running_estimates_that_a_graph_needs_are_not_changed_unnoticed():
    running = torch.zeros(3), torch.ones(3)
    factor = torch.ones(3, requires_grad=True)
    uses = [(factor * estimate).sum() for estimate in running]
    call(X, running=running)
    for use in uses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            use.backward()


def test_none_of_the_other_arguments_is_changed():
    inputs = leaves()
    before = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    y = call(**inputs, activation="silu")
    dy = DY.clone()
    y.backward(dy)
    assert all(torch.equal(before[name], tensor) for name, tensor in inputs.items())
    assert torch.equal(dy, DY)


@pytest.mark.parametrize("dy", [torch.ones(()).expand(X.shape), DY.transpose(2, 3).contiguous().transpose(2, 3)])
def test_a_gradient_that_lies_elsewhere_is_read_where_it_belongs(dy):
    found = []
    for function in (call, by_torch):
        inputs = leaves()
        found.append(gradients_of(function(**inputs, activation="silu"), inputs, dy))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], msg=name)


def train(**arguments):
    x = X.clone().requires_grad_()
    with backend("numba"):
        return functional.batch_norm(x, None, None, training=True, **arguments)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Wrapped(torch.Tensor):
    pass


def test_a_layer_trains_fused_unless_somebody_looks_on():
    assert type(train().grad_fn) is _Fused._backward_cls
    with Watching():
        assert type(train().grad_fn) is not _Fused._backward_cls


@pytest.mark.parametrize(
    "odd",
    [torch.ones(6)[::2], torch.ones(3).as_subclass(Wrapped), torch.ones(3, device="meta")],
    ids=["with-gaps", "subclass", "elsewhere"],
)
def test_what_the_call_cannot_take_is_left_to_the_rule(odd):
    assert is_fusable(torch.ones(3), nn.Parameter(torch.ones(3)), None)
    for at in range(3):
        assert not is_fusable(*[None] * at, odd)
    with backend("numba"):
        assert choose_path(X, None, None, torch.ones(3), None) == "fused"
        assert choose_path(X, None, None, odd, None) == "composed"
        assert choose_path(X.as_subclass(Wrapped), None, None, None, None) == "composed"


@pytest.mark.parametrize("given", [0, 1])
def test_one_running_estimate_without_the_other_is_left_alone(given):
    running = [None, None]
    running[given] = torch.ones(3)
    with backend("numba"):
        y = functional.batch_norm(X, *running, training=True)
    assert torch.equal(running[given], torch.ones(3))
    torch.testing.assert_close(y, by_torch(X))


def test_a_weight_with_gaps_trains_as_any_other():
    weight = (torch.arange(6.0) + 1)[::2]
    torch.testing.assert_close(train(weight=weight), by_torch(X, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_another_dtype_are_left_to_the_rule(dtype):
    weight = torch.tensor([0.5, 1.0, 2.0])
    torch.testing.assert_close(train(weight=weight.to(dtype)), by_torch(X, weight))


def test_whole_numbers_as_momentum_and_eps_compile_no_other_kernel():
    kernel = _numba.kernels.normalize
    running = torch.zeros(3), torch.ones(3)
    with backend("numba"):
        functional.batch_norm(X, *running, training=True, momentum=1.0, eps=1.0)
        before = list(kernel.signatures)
        functional.batch_norm(X, *running, training=True, momentum=1, eps=1)
    assert kernel.signatures == before


def test_absent_parameters_and_estimates_compile_no_other_kernel():
    x, parameter = X.clone().requires_grad_(), torch.ones(3, requires_grad=True)
    running = torch.zeros(3), torch.ones(3)
    kernels = _numba.kernels.normalize, _numba.kernels.normalize_grad
    with backend("numba"):
        functional.batch_norm(x, *running, parameter, parameter, training=True).square().sum().backward()
        before = [list(kernel.signatures) for kernel in kernels]
        for weight, bias in ((parameter, None), (None, parameter), (None, None)):
            functional.batch_norm(x, None, None, weight, bias, training=True).square().sum().backward()
    assert [kernel.signatures for kernel in kernels] == before


def test_training_in_float32_a_module_of_bfloat16_parameters():
    layer = BatchNorm2d(3, activation="relu").bfloat16()
    with backend("numba"):
        y = layer(X.bfloat16())
    expected = nn.BatchNorm2d(3)
    torch.testing.assert_close(y, F.relu(expected(X.bfloat16().float())).bfloat16(), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(layer.running_var, expected.running_var)

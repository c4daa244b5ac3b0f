"""Renorm, gated and ghost batch norm in one compiled call each way: what their rules give in float64."""

import copy

import pytest
import torch

import steadynorm
from steadynorm import backend
from steadynorm.functional import batch_renorm, gated_batch_norm, ghost_batch_norm
from steadynorm.rules import BatchRenormRule, GatedBatchNormRule, normalize_fused
from steadynorm.rules.fused import _Fused
from steadynorm.statistics import measure
from steadynorm.statistics.noise import sample_noise

N, C = 9, 20  # ghost chunks of five and four; a row that is no whole number of vectors
CONFIDENCE = (0.3, -0.4, 0.1)


def renorm(x, weight, bias, mean, var, **common):
    bounds = {"r_max": torch.tensor(1.2), "d_max": torch.tensor(0.3)}
    return batch_renorm(x, mean, var, weight, bias, **bounds, **common)


def gated(x, weight, bias, mean, var, confidence, **common):
    return gated_batch_norm(x, mean, var, weight, bias, noise=NOISE.to(mean.dtype), confidence=confidence, **common)


def blended(x, weight, bias, mean, var, **common):
    return gated_batch_norm(x, mean, var, weight, bias, noise=NOISE.to(mean.dtype), gate=0.3, **common)


def ghost(x, weight, bias, mean, var, **common):
    return ghost_batch_norm(x, weight, bias, ghost_batch_size=5, **common)


NOISE = torch.tensor([0.05])
MEMBERS = {"renorm": renorm, "gated": gated, "blended": blended, "ghost": ghost}
each = pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
each_stored = pytest.mark.parametrize("member", [renorm, gated, blended], ids=["renorm", "gated", "blended"])
each_layout = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "rows"])


def drawn(member, dtype=torch.float32, layout=torch.contiguous_format, samples=N):
    """Leaves by name, the numbers per channel in float32, and a gradient; some channels lie beyond renorm's bounds."""
    generator = torch.Generator().manual_seed(3)
    x, residual, dy = (torch.randn(samples, C, 8, 8, generator=generator) for _ in range(3))
    given = {"x": 1.5 * x + 0.4, "residual": residual}
    given = {name: tensor.to(dtype).contiguous(memory_format=layout) for name, tensor in given.items()}
    numbers = torch.randn(4, C, generator=generator)
    given |= {"weight": numbers[0] + 1, "bias": numbers[1], "mean": 0.4 + 0.3 * numbers[2], "var": numbers[3].exp()}
    given |= {"confidence": torch.tensor(CONFIDENCE)} if member is gated else {}
    given = {name: t.requires_grad_(name not in ("mean", "var")) for name, t in given.items()}
    return given, dy.to(dtype).contiguous(memory_format=layout)


def as_float64(given):
    return {name: tensor.detach().double().requires_grad_(tensor.requires_grad) for name, tensor in given.items()}


def trained(member, given, dy, *, activation="relu", **options):
    """The result and its gradients by name."""
    y, moments = member(**given, activation=activation)
    wanted = {name: tensor for name, tensor in given.items() if tensor.requires_grad}
    gradients = torch.autograd.grad(y, list(wanted.values()), dy, **options)
    return {"y": y, "batch_mean": moments.mean, "batch_var": moments.var, **dict(zip(wanted, gradients, strict=True))}


def assert_close(found, expected, rtol):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        largest = tensor.abs().max().item()
        torch.testing.assert_close(found[name].double(), tensor, rtol=rtol, atol=rtol * largest, msg=name)


@each
@each_layout
@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [
        pytest.param(torch.float32, 3e-6, id="float32"),
        pytest.param(torch.bfloat16, 1e-2, id="bf16", marks=pytest.mark.slow),  # whose kernels compile for long
    ],
)
def test_it_is_the_rule_in_float64(member, layout, dtype, rtol):
    given, dy = drawn(member, dtype, layout)
    with backend("numba"):
        found = trained(member, given, dy)
    assert type(found["y"].grad_fn) is _Fused._backward_cls
    assert (found["y"].dtype, found["y"].stride()) == (dtype, given["x"].stride())
    assert_close(found, trained(member, as_float64(given), dy.double()), rtol)


@each
@pytest.mark.parametrize("absent", ["weight", "bias", "residual"])
def test_what_is_absent_counts_as_in_the_rule(member, absent):
    given, dy = drawn(member)
    del given[absent]
    wide = as_float64(given)
    for arguments in (given, wide):
        arguments |= {absent: None} if absent != "residual" else {}
    found = []
    for arguments, gradient in ((given, dy), (wide, dy.double())):
        leaves = [tensor for tensor in arguments.values() if tensor is not None and tensor.requires_grad]
        with backend("numba" if arguments is given else "auto"):
            y, _ = member(**arguments)
            found.append((y, *torch.autograd.grad(y, leaves, gradient)))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@each
def test_the_gradient_of_a_gradient_penalty_is_the_rules(member):
    found = []
    for wide in (False, True):
        given, dy = drawn(member)
        given, dy = (as_float64(given), dy.double()) if wide else (given, dy)
        with backend("auto" if wide else "numba"):
            first = trained(member, given, dy, create_graph=True)
            penalty = first["x"].square().sum() + first["residual"].pow(3).sum()
            wanted = [tensor for tensor in given.values() if tensor.requires_grad]
            second = torch.autograd.grad(penalty, wanted, materialize_grads=True)
        found.append(dict(zip([name for name, tensor in given.items() if tensor.requires_grad], second, strict=True)))
    assert_close(*found, rtol=1e-4)


@each_stored
def test_running_estimates_follow_behind_the_rule_and_before_the_backward(member):
    given, dy = drawn(member)
    before = {name: given[name].clone() for name in ("mean", "var")}
    expected = trained(member, as_float64(given), dy.double())
    with backend("numba"):
        y, _ = member(**given, activation="relu", momentum=0.25)
        dx = torch.autograd.grad(y, given["x"], dy)[0]
    assert_close({"dx": dx}, {"dx": expected["x"]}, 3e-6)
    batch = measure(given["x"].detach().double())
    for name, new in (("mean", batch.mean), ("var", batch.var_unbiased)):
        torch.testing.assert_close(
            given[name].double(), 0.75 * before[name].double() + 0.25 * new, rtol=1e-6, atol=1e-6
        )


@each_stored
def test_without_a_momentum_the_running_estimates_stay(member):
    given, _ = drawn(member)
    before = {name: given[name].clone() for name in ("mean", "var")}
    with torch.no_grad():
        given["x"][0, 0, 0, 0] = torch.nan  # of which even none at all would be too much
    with backend("numba"):
        member(**given)
    assert all(torch.equal(given[name], tensor) for name, tensor in before.items())


@each_stored
def test_running_estimates_that_a_graph_needs_are_not_changed_unnoticed(member):
    given, _ = drawn(member)
    factor = torch.ones(C, requires_grad=True)
    uses = [(factor * given[name]).sum() for name in ("mean", "var")]
    with backend("numba"):
        member(**given, momentum=0.1)
    for use in uses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            use.backward()


@each_layout
@pytest.mark.parametrize("samples", [2, 3, 4, 9])
def test_noise_follows_as_by_tensor_operations(samples, layout):
    given, _ = drawn(gated, layout=layout, samples=samples)
    noise = NOISE.clone()
    with backend("numba"):
        gated_batch_norm(given["x"], given["mean"], given["var"], noise=noise, noise_momentum=0.25)
    x = given["x"].detach().double()
    torch.testing.assert_close(noise.double(), 0.75 * NOISE.double() + 0.25 * sample_noise(x, measure(x)))


def test_noise_of_one_sample_and_of_a_batch_that_is_not_finite_stays():
    for samples, value in ((1, 0.0), (9, float("nan")), (9, float("inf"))):
        given, _ = drawn(gated, samples=samples)
        noise, x = NOISE.clone(), given["x"].detach().clone()
        x = x.fill_(1.5) if samples == 1 else x  # which would tell that the noise is 1
        x[0, :, 0, 0] += value
        with backend("numba"):
            gated_batch_norm(x, given["mean"], given["var"], noise=noise, noise_momentum=0.25)
        assert torch.equal(noise, NOISE)


def test_channels_without_variance_tell_nothing_of_the_noise():
    given, _ = drawn(gated)
    x, found = given["x"].detach().clone(), []
    x[:, 3:] = 1.5
    for dtype in (torch.float32, torch.float64):
        noise = NOISE.to(dtype, copy=True)
        with backend("numba" if dtype == torch.float32 else "auto"):
            gated_batch_norm(
                x.to(dtype), given["mean"].to(dtype), given["var"].to(dtype), noise=noise, noise_momentum=0.25
            )
        found.append(noise.double())
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


@each
def test_a_value_that_is_no_number_comes_out_as_by_the_rule(member):
    for value in (float("nan"), float("inf")):
        found = []
        for dtype in (torch.float32, torch.float64):
            given, dy = drawn(member)
            given = {name: tensor.detach().to(dtype) for name, tensor in given.items()}
            given["x"][4, 2, 0, 0] = value
            with backend("numba" if dtype == torch.float32 else "auto"):
                leaf = given["x"].requires_grad_()
                y, _ = member(**given, activation="relu")
                found.append((y.detach(), torch.autograd.grad(y, leaf, dy.to(dtype))[0]))
        for ours, rule in zip(*found, strict=True):
            assert torch.equal(ours.isnan(), rule.isnan())


@pytest.mark.parametrize(("constant", "where", "gate"), [(-1e4, "far", 0.0), (1e4, "far", 1.0), (1e4, "near", 0.0)])
def test_a_confidence_without_bounds_shuts_or_opens_the_gate(constant, where, gate):
    """Neither 0·∞ nor ∞/∞ comes of it."""
    given, _ = drawn(gated)
    mean = given["mean"] if where == "far" else measure(given["x"].detach()).mean
    confidence = torch.tensor([constant, 0.0, 0.0])
    expected = gated_batch_norm(given["x"], mean, given["var"], noise=NOISE, gate=gate)[0]
    for name in ("numba", "reference"):
        with backend(name):
            y, _ = gated_batch_norm(given["x"], mean, given["var"], noise=NOISE, confidence=confidence)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_of_a_layout_in_which_samples_are_apart_chunks_are_the_same():
    given, dy = drawn(ghost)
    apart = given["x"].detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    found = []
    for x in (given["x"], apart):
        with backend("numba"):
            y, moments = ghost_batch_norm(x, ghost_batch_size=5)
            found.append((y, moments.mean, moments.var, *torch.autograd.grad(y, x, dy)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["BatchRenorm2d", "GatedBatchNorm2d", "GhostBatchNorm2d"])
def test_a_layer_trains_fused_to_what_its_rule_gives(name):
    """Three steps: with what it stores moving on."""
    arguments = {"BatchRenorm2d": {"warmup_steps": 1, "ramp_steps": 1}, "GhostBatchNorm2d": {"ghost_batch_size": 5}}
    layer = getattr(steadynorm, name)(C, activation="relu", **arguments.get(name, {}))
    other = copy.deepcopy(layer).double()
    for seed in range(3):
        x = torch.randn(N, C, 8, 8, generator=torch.Generator().manual_seed(seed)) + seed
        y = layer(x)
        assert type(y.grad_fn) is _Fused._backward_cls
        torch.testing.assert_close(y.double(), other(x.double()), rtol=1e-4, atol=1e-5)
    for (key, ours), theirs in zip(layer.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-6, msg=key)


@each_stored
def test_one_value_per_channel_is_left_to_the_rule(member):
    given, _ = drawn(member, samples=1)
    given["x"], given["residual"] = given["x"][:, :, :1, :1], given["residual"][:, :, :1, :1]
    with backend("numba"):
        y, _ = member(**given, momentum=0.1)
    assert type(y.grad_fn) is not _Fused._backward_cls
    assert given["var"].isfinite().all()


@pytest.mark.parametrize("rule", [BatchRenormRule(1e-5), GatedBatchNormRule(1e-5), GatedBatchNormRule(1e-5, 0.3)])
def test_only_the_inputs_and_numbers_per_channel_are_kept_for_the_backward(rule):
    given, _ = drawn(gated)
    own = [torch.tensor(2.0), torch.tensor(3.0)] if isinstance(rule, BatchRenormRule) else [NOISE, None]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        normalize_fused(
            given["x"], rule, given["weight"], given["bias"], *own, running_mean=given["mean"], running_var=given["var"]
        )
    large = [tensor for tensor in kept if tensor.numel() > 4 * C]
    assert [tensor.data_ptr() for tensor in large] == [given["x"].data_ptr()]

"""Synchronized batch norm on four processes, as accurate as torch's on the batches put together in one."""

import functools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from steadynorm.layers import SyncBatchNorm
from steadynorm.rules import BatchNormRule, normalize
from tests.support import oracle
from tests.support.cases import Case, make_inputs
from tests.support.ranks import SIZES, on_ranks, part_of, together

BATCH = sum(SIZES)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A case and what the layer does with it."""

    case: Case
    activation: str | None = None
    residual: bool = False
    affine: bool = True


PLAIN = Case(id="4-d", shape=(BATCH, 3, 2, 3))
LARGE_MEAN = Case(id="large-mean", shape=(BATCH, 5, 16), mean=1e4, std=1.0)
HALF = Case(id="bfloat16", shape=(BATCH, 3, 7), dtype=torch.bfloat16)
SETTINGS = {
    f"{setting.case.id}-{setting.activation}{'-residual' * setting.residual}{'-plain' * (not setting.affine)}": setting
    for setting in (
        Setting(case=Case(id="2-d", shape=(BATCH, 7))),
        Setting(case=Case(id="3-d", shape=(BATCH, 3, 5)), activation="silu"),
        Setting(case=PLAIN),
        Setting(case=PLAIN, affine=False),
        Setting(case=PLAIN, residual=True),
        Setting(case=PLAIN, residual=True, activation="relu"),
        Setting(case=PLAIN, residual=True, activation="leaky_relu", affine=False),
        Setting(case=Case(id="5-d", shape=(BATCH, 2, 2, 1, 3)), activation="relu"),
        Setting(case=Case(id="rows", shape=(BATCH, 6, 3, 2), layout="channels_last"), residual=True),
        Setting(case=Case(id="compiled-kernels", shape=(BATCH, 2, 257, 257)), activation="silu"),
        Setting(case=Case(id="float64", shape=(BATCH, 3, 5), dtype=torch.float64), residual=True, activation="silu"),
        Setting(case=HALF),
        Setting(case=HALF, residual=True, activation="relu"),
        Setting(case=LARGE_MEAN),
        Setting(case=LARGE_MEAN, residual=True, activation="silu"),
        Setting(case=Case(id="large-mean-float64", shape=(BATCH, 5, 16), mean=1e4, std=1.0, dtype=torch.float64)),
    )
}
WITH_LARGE_MEAN = [name for name, setting in SETTINGS.items() if setting.case.mean == 1e4]
each_setting = pytest.mark.parametrize("setting", SETTINGS)


def results_of(name):
    """What there is to compare, but for the variance where the ranks' means are rounded too much."""
    setting = SETTINGS[name]
    results = ["y", "dx", "running_mean"] + ["dresidual"] * setting.residual + ["dweight", "dbias"] * setting.affine
    return results + ["running_var"] * (name not in WITH_LARGE_MEAN)


def run_setting(setting):
    inputs = make_inputs(setting.case)
    layer = SyncBatchNorm(
        setting.case.shape[1], affine=setting.affine, activation=setting.activation, dtype=inputs.weight.dtype
    )
    x, residual = part_of(inputs.x).requires_grad_(), part_of(inputs.residual).requires_grad_()
    if setting.affine:
        layer.load_state_dict({"weight": inputs.weight, "bias": inputs.bias}, strict=False)
    y = layer(x, residual if setting.residual else None)
    y.backward(part_of(inputs.dy))
    gradients = {f"d{name}": parameter.grad for name, parameter in layer.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, "dresidual": residual.grad} | gradients | dict(layer.named_buffers())


def on_each_rank():
    return {name: run_setting(setting) for name, setting in SETTINGS.items()}


@pytest.fixture
def each_backend():
    """The processes choose by themselves."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    # Compiled here, the kernels need not be compiled by each process at the same time.
    x = torch.randn(2, 2, 257, 257).requires_grad_()
    normalize(x, BatchNormRule(oracle.EPS), None, None, activation="silu")[0].sum().backward()
    return on_ranks(on_each_rank, len(SIZES), tmp_path_factory.mktemp("ranks"))


@functools.cache
def by_torch(setting):
    """torch's own operations on the whole batch in the same dtype."""
    inputs = make_inputs(setting.case)
    weight, bias = (each.clone().requires_grad_() if setting.affine else None for each in (inputs.weight, inputs.bias))
    x, residual = inputs.x.clone().requires_grad_(), inputs.residual.clone().requires_grad_()
    mean, var = torch.zeros_like(inputs.weight), torch.ones_like(inputs.weight)
    y = F.batch_norm(x, mean, var, weight, bias, True)
    y = y + residual if setting.residual else y
    y = y if setting.activation is None else getattr(F, setting.activation)(y)
    y.backward(inputs.dy)
    found = {"y": y.detach(), "dx": x.grad, "dresidual": residual.grad, "running_mean": mean, "running_var": var}
    return found | ({"dweight": weight.grad, "dbias": bias.grad} if setting.affine else {})


@functools.cache
def by_definition(setting):
    inputs = make_inputs(setting.case)
    given = {"weight": inputs.weight, "bias": inputs.bias} if setting.affine else {}
    given |= {"residual": inputs.residual if setting.residual else None, "activation": setting.activation}
    batch = oracle.batch_norm(inputs.x, **given)
    gradients = vars(oracle.batch_norm_gradients(inputs.dy, inputs.x, **given))
    running = {"running_mean": 0.1 * batch.mean, "running_var": 0.9 + 0.1 * batch.var_unbiased}
    return {"y": batch.y} | gradients | running


@pytest.mark.parametrize(("setting", "what"), [(name, what) for name in SETTINGS for what in results_of(name)])
def test_ranks_together_are_as_accurate_as_torch_on_the_whole_batch(ranks, setting, what):
    found = [each[setting] for each in ranks]
    setting = SETTINGS[setting]
    native, exact = by_torch(setting)[what], by_definition(setting)[what]
    parts = [each[what] for each in found]
    ours = together(parts) if what in ("y", "dx", "dresidual") else parts[0]
    if what in ("dweight", "dbias"):
        ours = torch.stack(parts).double().sum(0).to(native.dtype)
    oracle.assert_as_accurate_as(native=native, ours=ours, oracle=exact, what=what)


@pytest.mark.parametrize("setting", WITH_LARGE_MEAN)
def test_a_large_mean_costs_the_variance_no_more_than_the_rounding_of_the_ranks_means(ranks, setting):
    """As var = Σ s_r·(var_r + (mean_r − mean)²), where each mean_r is off by half a unit in its last place at most."""
    case = SETTINGS[setting].case
    inputs = make_inputs(case)
    means = [part.double().transpose(0, 1).flatten(1).mean(1) for part in inputs.x.split(SIZES) if len(part)]
    distance = max((mean - inputs.x.double().transpose(0, 1).flatten(1).mean(1)).abs().max() for mean in means)
    exact = torch.from_numpy(by_definition(SETTINGS[setting])["running_var"])
    error = (ranks[0][setting]["running_var"] - exact).abs().max()
    assert error < 0.1 * 2 * distance * 2e4 * torch.finfo(case.dtype).eps


@each_setting
@pytest.mark.parametrize("what", ["running_mean", "running_var", "num_batches_tracked"])
def test_running_estimates_are_the_same_on_every_rank(ranks, setting, what):
    first, *others = (each[setting][what] for each in ranks)
    assert all(torch.equal(other, first) for other in others)


@each_setting
def test_an_empty_rank_gets_empty_results_and_gradients_of_zero(ranks, setting):
    found = ranks[SIZES.index(0)][setting]
    empty = (0, *SETTINGS[setting].case.shape[1:])
    assert found["y"].shape == found["dx"].shape == empty
    assert all(not found[name].any() for name in ("dweight", "dbias") if name in found)

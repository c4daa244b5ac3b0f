"""Readings are what the layers do: gates and corrections are found again in their outputs."""

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.surgery import convert_, freeze_, readings_during, readings_of, statistics_of
from tests.support.layers import drawn, randomize_

X = drawn(16, 5, 3, 3) * 2 + 1


def line_of(x, y):
    """Slope and offset of a channel-wise map."""
    x, y = (each.transpose(0, 1).flatten(1) for each in (x, y))
    centred = x - x.mean(1, keepdim=True)
    slope = (centred * y).sum(1) / centred.square().sum(1)
    return slope, y.mean(1) - slope * x.mean(1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gate", [None, 0.3])
def test_the_gate_is_the_one_that_the_output_shows(training, gate):
    norm = randomize_(steadynorm.GatedBatchNorm2d(5, affine=False, gate=gate)).double().train(training)
    stored, batch = norm.running_mean.clone(), X.mean((0, 2, 3))
    with readings_during(norm) as readings:
        slope, offset = line_of(X, norm(X))
    shown = (-offset / slope - stored) / (batch - stored)
    assert 0.01 < readings["model/gate"] < 0.999
    torch.testing.assert_close(shown, torch.full_like(shown, readings["model/gate"]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("bounds", [(3.0, 5.0), (1.1, 0.2)])
def test_r_and_d_are_those_that_the_output_shows(bounds):
    norm = steadynorm.BatchRenorm2d(5, affine=False, r_max=bounds[0], d_max=bounds[1], warmup_steps=0, ramp_steps=0)
    randomize_(norm.double())
    with readings_during(norm) as readings:
        slope, offset = line_of(X, norm(X))
    mean, var = X.mean((0, 2, 3)), X.var((0, 2, 3), correction=0)
    r, d = slope * (var + norm.eps).sqrt(), slope * mean + offset
    assert readings["model/r"] == pytest.approx(float(r.mean()))
    assert readings["model/d"] == pytest.approx(float(d.square().mean().sqrt()))
    at_bound = (r > bounds[0] - 1e-6) | (r < 1 / bounds[0] + 1e-6) | (d.abs() > bounds[1] - 1e-6)
    assert readings["model/clipped"] == pytest.approx(float(at_bound.double().mean()))
    assert (readings["model/clipped"] > 0) is (bounds[0] < 2)
    assert (readings["model/r_max"], readings["model/d_max"]) == pytest.approx(bounds)


def test_in_evaluation_renorm_corrects_nothing():
    norm = steadynorm.BatchRenorm2d(5).double().eval()
    with readings_during(norm) as readings:
        norm(X)
    assert readings == {"model/r_max": 1.0, "model/d_max": 0.0}


def test_the_momentum_is_that_of_the_trusted_expert():
    norm = steadynorm.BatchNorm1d(3, running="self_tuned")
    weights = norm.get_buffer("_bank_weights")
    weights.zero_()
    weights[3, 0] = weights[0, 1] = weights[1, 1] = 0.5
    weights[5, 0] = 0.5
    found = readings_of(norm)
    assert found == pytest.approx({"model/momentum_mean": (2**-3 + 2**-5) / 2, "model/momentum_var": 0.75})


def test_the_distance_is_from_the_snapshot():
    model = nn.Sequential(nn.BatchNorm1d(3, eps=0.5), nn.BatchNorm1d(3))
    before = statistics_of(model)
    model[0].running_mean += 3
    found = readings_of(model, before)
    assert found == pytest.approx({"0/distance": 3 / 1.5**0.5, "1/distance": 0.0})


def test_several_forwards_are_averaged_and_a_failed_one_leaves_no_hook():
    norm = steadynorm.GatedBatchNorm2d(5, gate=None).double().eval()
    each = []
    for x in (X, X * 0.1):
        with readings_during(norm) as readings:
            norm(x)
        each.append(readings["model/gate"])
    with readings_during(norm) as readings:
        norm(X), norm(input=X * 0.1)
    assert readings["model/gate"] == pytest.approx(sum(each) / 2)
    assert each[0] != each[1]
    with pytest.raises(ZeroDivisionError), readings_during(norm):
        raise ZeroDivisionError
    assert not norm._forward_pre_hooks


def test_reading_changes_nothing():
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
        convert_(model, "gated_batch_norm", where=lambda name, _: name == "1")
        convert_(model, "batch_renorm", where=lambda name, _: name == "4")
        return model.double()

    plain, read = build(), build()
    with readings_during(read) as readings:
        outputs = [model(X) for model in (plain, read)]
    for y in outputs:
        y.backward(drawn(*y.shape))
    assert torch.equal(*outputs)
    assert sorted(readings) == ["1/gate", "1/noise", "4/clipped", "4/d", "4/d_max", "4/r", "4/r_max"]
    for one, other in zip(plain.parameters(), read.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(plain.buffers(), read.buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_recomputed_forward_is_read_once():
    norm = steadynorm.GatedBatchNorm2d(5).double()
    x = X.clone().requires_grad_()
    with readings_during(norm) as readings:
        y = torch.utils.checkpoint.checkpoint(norm, x, use_reentrant=False)
        first = norm.running_mean.clone()
        y.backward(drawn(*y.shape))
    again = steadynorm.GatedBatchNorm2d(5).double()
    with readings_during(again) as expected:
        again(X)
    assert readings["model/gate"] == expected["model/gate"]
    assert torch.equal(first, norm.running_mean)


def test_where_chooses_and_frozen_layers_tune_nothing():
    model = nn.Sequential(*(steadynorm.BatchNorm1d(3, running="self_tuned") for _ in range(2)))
    assert set(readings_of(model, where=lambda name, _: name == "1")) == {"1/momentum_mean", "1/momentum_var"}
    freeze_(model)
    assert readings_of(model) == {}


def test_a_model_without_batch_norms_has_no_readings():
    assert readings_of(nn.Linear(2, 2), {}) == {}


def test_a_snapshot_of_another_model_is_refused():
    model = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=r"readings_of: stored must have .* got a\.running_mean"):
        readings_of(model, {"a.running_mean": torch.zeros(3), "a.running_var": torch.ones(3)})

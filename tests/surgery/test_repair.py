"""Broken channels made usable, healthy ones left alone."""

import copy

import pytest
import torch
from torch import nn

from steadynorm import layers
from steadynorm.surgery.recalibrate import recalibrate_
from steadynorm.surgery.repair import repair_statistics_
from tests.support.layers import drawn, randomize_
from tests.support.surgery import Activated, refusals

BROKEN = {
    "nan mean": (torch.nan, 4.0),
    "infinite mean": (-torch.inf, 4.0),
    "absurd mean": (-2e10, 4.0),
    "all nan": (torch.nan, torch.nan),
    "nan variance": (0.5, torch.nan),
    "infinite variance": (0.5, torch.inf),
    "negative variance": (0.5, -1e-5),
    "absurd variance": (0.5, 2e20),
}
HEALTHY = {"seconds since 1970": (1.7e9, 3e17), "zero variance": (0.5, 0.0), "negative mean": (-3.0, 0.1)}


def broken_(norm, channel=1, mean=torch.nan, var=torch.nan):
    norm.running_mean[channel], norm.running_var[channel] = mean, var
    norm.num_batches_tracked.fill_(7)
    return norm


def network():
    torch.manual_seed(0)
    parts = [part for _ in range(3) for part in (nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh())]
    model = randomize_(nn.Sequential(*parts).double())
    broken_(model[1])
    broken_(model[7], 0, var=2.0)
    return model


def batches():
    return [drawn(size, 3, seed=size) * 2 + 1 for size in (6, 3)]


@pytest.mark.parametrize(("mean", "var"), BROKEN.values(), ids=BROKEN)
def test_a_broken_mean_is_set_to_0_and_a_broken_variance_to_1_alone(mean, var):
    norm = broken_(randomize_(nn.BatchNorm1d(3)), 1, mean, var)
    before = copy.deepcopy(norm.state_dict())
    change = repair_statistics_(norm)
    expected = (0.5 if mean == 0.5 else 0, 4 if var == 4 else 1)
    assert (norm.running_mean[1], norm.running_var[1]) == expected
    for name in ("running_mean", "running_var"):
        assert torch.equal(norm.state_dict()[name][[0, 2]], before[name][[0, 2]])
    assert int(norm.num_batches_tracked) == 7
    healthy = " (the mean is healthy in 1)" if mean == 0.5 else " (the variance is healthy in 1)"
    note = "1 of 3 channels was broken: 1" + ("" if mean != mean and var != var else healthy)
    assert change.changed[0].notes == (note,)
    assert change.measured == {"channels": 1}


@pytest.mark.parametrize(("mean", "var"), HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_channel_stays(mean, var):
    norm = broken_(nn.BatchNorm1d(3), 1, mean, var)
    before = copy.deepcopy(norm.state_dict())
    change = repair_statistics_(norm)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)
    assert not change.changed
    assert change.measured == {"channels": 0}


@pytest.mark.parametrize("absurd", [1e200, torch.inf])
def test_what_is_not_finite_is_broken_however_large_a_number_may_be(absurd):
    norm = broken_(nn.BatchNorm1d(4), 1, torch.inf, torch.inf)
    norm.running_mean[2] = norm.running_var[2] = 1e30
    repair_statistics_(norm, absurd=absurd)
    assert norm.running_mean.tolist()[:2] == [0, 0]
    assert norm.running_var.tolist()[:2] == [1, 1]
    assert norm.running_mean[2] == norm.running_var[2] == torch.tensor(1e30)


def test_the_first_few_of_many_are_listed():
    norm = nn.BatchNorm1d(40)
    norm.running_var[5:].fill_(torch.nan)
    norm.running_mean[5:].fill_(torch.nan)
    change = repair_statistics_(norm)
    assert change.changed[0].notes == ("35 of 40 channels were broken: 5, 6, 7, 8, 9, 10, 11, 12, ...",)


def test_undo_puts_back_every_bit():
    model = network()
    before = copy.deepcopy(model.state_dict())
    repair_statistics_(model, batches()).undo()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)


def test_batches_give_broken_channels_their_statistics_and_healthy_ones_keep_theirs():
    model = network()
    before = {name: each.clone() for name, each in model.named_buffers()}
    change = repair_statistics_(model, batches())
    inputs = {}
    for name, module in model.named_modules():
        if name in ("1", "7"):
            module.register_forward_pre_hook(lambda _, x, name=name: inputs.setdefault(name, x[0]))
    model.eval()(torch.cat(batches()))
    for name, channel in (("1", 1), ("7", 0)):
        norm, x, others = (
            model.get_submodule(name),
            inputs[name].detach(),
            [each for each in range(3) if each != channel],
        )
        torch.testing.assert_close(norm.running_mean[channel], x.mean(0)[channel], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.running_var[channel], x.var(0)[channel], rtol=1e-4, atol=1e-4)
        for kind in ("running_mean", "running_var"):
            assert torch.equal(getattr(norm, kind)[others], before[f"{name}.{kind}"][others])
        assert int(norm.num_batches_tracked) == 7
    for kind in ("running_mean", "running_var"):
        assert torch.equal(getattr(model[4], kind), before[f"4.{kind}"])
    assert [each.name for each in change.changed] == ["1", "7"]
    assert (change.measured["channels"], change.measured["samples"]) == (2, 9)


def test_a_layer_that_is_broken_altogether_gets_what_recalibration_gives():
    norm, other = broken_(nn.BatchNorm1d(3), slice(None)).double(), nn.BatchNorm1d(3).double()
    repair_statistics_(norm, batches())
    recalibrate_(other, batches())
    torch.testing.assert_close(norm.running_mean, other.running_mean)
    torch.testing.assert_close(norm.running_var, other.running_var)


def test_a_layer_that_batches_do_not_reach_says_so():
    model = nn.ModuleDict({"used": broken_(nn.BatchNorm1d(3)), "unused": broken_(nn.BatchNorm1d(3))}).double()
    change = repair_statistics_(model, batches(), forward=lambda model, x: model["used"](x))
    assert "not reached by the batches" in change.changed[1].notes[-1]
    assert model["unused"].running_var[1] == 1


def test_batches_are_not_looked_at_where_nothing_is_broken():
    def loader():
        raise AssertionError
        yield

    assert not repair_statistics_(nn.BatchNorm1d(3), loader()).changed


def test_what_raises_leaves_everything_as_it_was():
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="repair_statistics_: every batch must be finite"):
        repair_statistics_(model, [drawn(4, 3) * torch.nan])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)


def test_a_frozen_layer_is_repaired():
    norm = broken_(layers.FrozenBatchNorm1d(3))
    repair_statistics_(norm)
    assert norm.running_var[1] == 1


def test_only_what_is_chosen_is_repaired():
    model = nn.Sequential(broken_(nn.BatchNorm1d(3)), broken_(nn.BatchNorm1d(3)))
    repair_statistics_(model, where=lambda name, module: name == "1")
    assert model[0].running_var[1].isnan()
    assert model[1].running_var[1] == 1


def test_a_subclass_that_nobody_knows_is_named():
    assert [each.name for each in refusals(repair_statistics_, nn.Sequential(Activated(3)))] == ["0"]


@pytest.mark.parametrize("named", [{"running": "self_tuned"}, {"update_every": 3}])
def test_what_a_layer_keeps_of_a_bad_batch_does_not_come_back(named):
    norm = layers.BatchNorm1d(3, **named)
    for value in (1.0, torch.inf, 1.0, 1.0, torch.nan):
        norm(torch.randn(6, 3) * torch.tensor([1.0, value, 1.0]))
    change = repair_statistics_(norm)
    for _ in range(3):
        norm(torch.randn(6, 3))
    assert norm.running_mean.isfinite().all()
    assert norm.running_var.isfinite().all()
    assert change.changed


def test_a_window_that_would_corrupt_healthy_estimates_starts_again():
    norm = layers.BatchNorm1d(3, update_every=2)
    norm(torch.full((4, 3), torch.nan))
    change = repair_statistics_(norm)
    assert "not finite" in change.changed[0].notes[0]
    assert change.measured["channels"] == 0
    for _ in range(2):
        norm(torch.randn(4, 3))
    assert norm.running_var.isfinite().all()


@pytest.mark.parametrize("noise", [torch.nan, -1.0])
def test_the_noise_of_a_gated_layer_is_set_to_1(noise):
    norm = layers.GatedBatchNorm1d(3)
    norm.noise.fill_(noise)
    change = repair_statistics_(norm)
    assert norm.noise.item() == 1
    assert change.changed[0].notes[0].startswith("its noise was ")
    change.undo()
    assert norm.noise.isnan() if noise != noise else norm.noise == noise


def test_a_magnitude_of_ones_own_is_absurd():
    norm = broken_(nn.BatchNorm1d(3), 1, 200.0, 4.0)
    assert not repair_statistics_(norm).changed
    assert repair_statistics_(norm, absurd=100).measured["channels"] == 1
    with pytest.raises(ValueError, match="absurd must be positive, got 0"):
        repair_statistics_(norm, absurd=0)

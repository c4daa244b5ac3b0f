import copy
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import steadynorm
from steadynorm.surgery import convert_
from steadynorm.surgery.group_norm import groups_for
from tests.support.layers import drawn, make_native, randomize_
from tests.support.surgery import MIXED_INPUT, assert_state_equal, mixed, snapshot


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(1, 1), (8, 1), (16, 1), (17, 1), (32, 2), (48, 3), (96, 6), (512, 32), (1000, 25), (2048, 32)],
)
def test_groups_divide_and_keep_sixteen_channels(channels, groups):
    assert groups_for(channels) == groups


def test_groups_always_divide():
    for channels in range(1, 600):
        groups = groups_for(channels)
        assert channels % groups == 0
        assert groups <= 32
        assert groups == 1 or channels // groups >= 16


def test_parameters_eps_mode_and_dtype_are_carried():
    model = nn.Sequential(nn.BatchNorm2d(48, eps=1e-3)).bfloat16().eval()
    weight, bias = model[0].weight, model[0].bias
    convert_(model, "group_norm")
    norm = model[0]
    assert type(norm) is nn.GroupNorm
    assert (norm.num_groups, norm.eps, norm.training) == (3, 1e-3, False)
    assert norm.weight is weight
    assert norm.bias is bias


@pytest.mark.parametrize("arguments", [{"affine": False}, {"bias": False}], ids=str)
def test_missing_parameters_stay_missing(arguments):
    model = nn.Sequential(make_native(nn.BatchNorm2d, 4, **arguments))
    keys = [name for name, _ in model.named_parameters()]
    convert_(model, "group_norm")
    assert [name for name, _ in model.named_parameters()] == keys
    assert torch.isfinite(model(torch.randn(2, 4, 3, 3))).all()


def test_it_computes_group_norm():
    model = randomize_(nn.Sequential(nn.BatchNorm2d(32)).double())
    weight, bias = (each.detach().numpy() for each in model.parameters())
    convert_(model, "group_norm", num_groups=4)
    x = drawn(3, 32, 2, 2)
    groups = x.numpy().reshape(3, 4, -1)
    z = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    wanted = z.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    torch.testing.assert_close(model(x), torch.from_numpy(wanted))


@pytest.mark.parametrize("to", ["layer_norm", nn.LayerNorm])
def test_layer_norm_is_over_channels_and_positions(to):
    model = nn.Sequential(nn.BatchNorm1d(6), nn.BatchNorm2d(6)).double()
    convert_(model, to)
    flat, image = drawn(4, 6), drawn(4, 6, 3, 3)
    torch.testing.assert_close(model[0](flat), nn.functional.layer_norm(flat, (6,)))
    torch.testing.assert_close(model[1](image), nn.functional.layer_norm(image, (6, 3, 3)))


def test_groups_that_do_not_divide_are_refused():
    model = mixed()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"num_groups must be .* divides the channels, got 5 for 32"):
        convert_(model, "group_norm", num_groups=5)
    assert_state_equal(model, before)


@pytest.mark.parametrize("groups", [0, -1, 2.5, 2.0, float("nan")])
def test_a_number_of_groups_that_is_none_is_refused(groups):
    with pytest.raises(ValueError, match=f"num_groups must be an integer that divides the channels, got {groups} for"):
        convert_(nn.BatchNorm2d(10), "group_norm", num_groups=groups)


@pytest.mark.parametrize("size", [1e308, torch.nan])
def test_a_layer_whose_input_is_too_large_keeps_its_weight_and_is_named(size):
    model = plain_net()
    model[0].weight.data.fill_(size)
    weights = [model[place].weight.clone() for place in (1, 4)]
    change = convert_(model, "group_norm", batches=[drawn(20, 3, 2, 2)])
    assert [each.name for each in change.refused] == ["1", "4"]
    assert "not finite, or too large" in change.refused[0].why
    assert all(torch.equal(model[place].weight, weight) for place, weight in zip((1, 4), weights, strict=True))


def test_one_channel_to_a_group_is_noted():
    change = convert_(nn.Sequential(nn.BatchNorm1d(6)), "group_norm", num_groups=6)
    assert "only the bias remains" in change.changed[0].notes[0]


def test_a_start_from_data_is_the_least_squares_line():
    model = randomize_(nn.Sequential(nn.BatchNorm2d(4)).double()).eval()
    batches = [drawn(6, 4, 3, 3), drawn(2, 4, 3, 3, seed=1) * 3 + 1]
    targets = np.concatenate([model(x).detach().numpy() for x in batches])
    plain = nn.GroupNorm(1, 4, affine=False).double()
    inputs = np.concatenate([plain(x).numpy() for x in batches])
    convert_(model, "group_norm", batches=batches)
    for channel in range(4):
        line = np.polyfit(inputs[:, channel].ravel(), targets[:, channel].ravel(), 1)
        np.testing.assert_allclose(model[0].weight[channel].item(), line[0], rtol=1e-9)
        np.testing.assert_allclose(model[0].bias[channel].item(), line[1], rtol=1e-9)


def output_error(model, wanted):
    return ((model(MIXED_INPUT) - wanted).norm() / wanted.norm()).item()


def test_a_start_from_data_comes_nearer_and_says_how_near():
    model = mixed()
    wanted = model(MIXED_INPUT)
    change = convert_(model, "group_norm", batches=[MIXED_INPUT])
    assert change.measured["output_error"] == pytest.approx(output_error(model, wanted))
    assert change.measured["output_error"] < 0.6 * change.measured["output_error_before_start"]


def test_a_layer_is_fitted_behind_those_before_it():
    """The second layer is matched to what it really gets, which the first layer's new weights have decided."""
    model = randomize_(nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.BatchNorm1d(4)).double()).eval()
    x = drawn(50, 4)
    wanted = model(x).detach()
    convert_(model, "group_norm", batches=[x])
    z = nn.functional.group_norm(model[1](model[0](x)), 1).detach().numpy()
    for channel in range(4):
        line = np.polyfit(z[:, channel], wanted[:, channel].numpy(), 1)
        np.testing.assert_allclose(model[2].weight[channel].item(), line[0], rtol=1e-8)


def test_undo_takes_the_start_from_data_back():
    model = mixed()
    before = snapshot(model)
    convert_(model, "group_norm", batches=iter([MIXED_INPUT])).undo()
    assert_state_equal(model, before)


class Caching(nn.Module):
    """Keeps what it gave last, with its graph, so that it cannot be deep-copied."""

    def forward(self, x):
        self.last = x * 1
        return self.last


def locked(model):
    model[0].lock = threading.Lock()


def caching(model):
    model[2] = Caching()
    model(drawn(2, 3, 2, 2))


def weight_normed(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model[0])
    model(drawn(2, 3, 2, 2)).sum().backward()


def pruned(model):
    prune.l1_unstructured(model[0], "weight", 0.5)
    model(drawn(2, 3, 2, 2)).sum().backward()


def plain_net():
    parts = (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Identity(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    return randomize_(nn.Sequential(*parts).double()).eval()


@pytest.mark.parametrize("hinder", [locked, caching, weight_normed, pruned], ids=lambda each: each.__name__)
def test_a_model_that_cannot_be_copied_starts_from_data_as_another(hinder):
    model, x = plain_net(), drawn(20, 3, 2, 2)
    hinder(model)
    with pytest.raises((TypeError, RuntimeError)):
        copy.deepcopy(model)
    before, y = snapshot(model), model(x).detach()
    other = plain_net()
    if hinder is pruned:
        other[0].weight.data.copy_(model[0].weight)
    change, expected = convert_(model, "group_norm", batches=[x]), convert_(other, "group_norm", batches=[x])
    for place in (1, 4):
        torch.testing.assert_close(model[place].weight, other[place].weight)
        torch.testing.assert_close(model[place].bias, other[place].bias)
    assert change.measured == pytest.approx(expected.measured)
    assert_state_equal(change.undo(), before)
    assert torch.equal(model(x), y)


def test_the_model_as_it_was_has_its_old_numbers_wherever_they_are_shared():
    """Here a layer that is not converted multiplies by the weight of one that is."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.last(self.norm(x) * self.norm.weight)

    model = randomize_(Scaled().double()).eval()
    x = drawn(50, 4)
    wanted = model(x).detach()
    change = convert_(model, "group_norm", batches=[x])
    z = nn.functional.group_norm(model.norm(x) * model.norm.weight, 1).detach().numpy()
    for channel in range(4):
        line = np.polyfit(z[:, channel], wanted[:, channel].numpy(), 1)
        np.testing.assert_allclose(model.last.weight[channel].item(), line[0], rtol=1e-8)
    error = ((model(x) - wanted).norm() / wanted.norm()).item()
    assert change.measured["output_error"] == pytest.approx(error)


def test_what_fails_in_the_model_as_it_was_leaves_everything_as_it_was():
    model, calls = mixed(), []
    before = snapshot(model)

    def fails(model, x):
        calls.extend([0] * isinstance(model[1], nn.BatchNorm2d))
        if len(calls) > 2:
            raise KeyError("in the model as it was")
        return model(x)

    with pytest.raises(KeyError, match="in the model as it was"):
        convert_(model, "group_norm", batches=[MIXED_INPUT], forward=fails)
    assert len(calls) == 3
    assert_state_equal(model, before)


def test_layers_that_cannot_start_from_data_are_named():
    model = mixed()
    model[5].unused = nn.BatchNorm1d(3).double().eval()
    model[1] = nn.BatchNorm2d(32, affine=False).double().eval()
    change = convert_(model, "group_norm", batches=[MIXED_INPUT])
    assert {each.name: each.why.split(",")[0] for each in change.refused} == {
        "5.unused": "not reached by the batches",
        "1": "it has no weight and bias to fit.",
    }


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        convert_(mixed(), "group_norm", batches=[])


def test_the_start_leaves_no_trace_of_its_runs():
    model = nn.Sequential(nn.Dropout(0.5), randomize_(nn.BatchNorm1d(4).double()), steadynorm.BatchNorm1d(4).double())
    model.train()
    random = torch.get_rng_state()
    convert_(model, "group_norm", batches=[drawn(5, 4)], where=lambda name, module: name == "1")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert int(model[2].num_batches_tracked) == 0
    assert not any(module._forward_pre_hooks for module in model.modules())

"""What counts as a batch norm: exact classes, subclasses that compute the same, and nothing that may do more."""

import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.surgery import convert_, fold_, recalibrate_, statistics_of
from tests.support.layers import drawn, randomize_
from tests.support.surgery import refusals


class Plain(nn.BatchNorm2d):
    pass


class Ours(steadynorm.BatchNorm2d):
    pass


class WithAttributes(nn.BatchNorm2d):
    """As many write it: other defaults, a name, a method of its own."""

    kind = "mine"

    def __init__(self, channels, label):
        super().__init__(channels, eps=1e-3)
        self.label = label

    def extra_repr(self):
        return self.label

    def describe(self):
        return self.label


class AnyRank(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, input):
        pass


class StaysInEvaluation(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


class OwnWeight(nn.BatchNorm2d):
    @property
    def eps(self):
        return 0.5

    @eps.setter
    def eps(self, value):
        pass


class OwnCall(nn.BatchNorm2d):
    def __call__(self, x):
        return super().__call__(x).relu()


class OwnTraining(steadynorm.BatchNorm2d):
    def _train(self, input, residual):
        return super()._train(2 * input, residual)


def model_of(norm):
    return randomize_(nn.Sequential(nn.Conv2d(3, 4, 1), norm)).double().eval()


@pytest.mark.parametrize("build", [Plain, Ours, lambda c: WithAttributes(c, "first")])
def test_a_subclass_that_overrides_nothing_counts_as_its_parent(build):
    x = drawn(3, 3, 5, 5)
    for verb in (lambda m: convert_(m, "batch_renorm"), lambda m: fold_(m, x), lambda m: recalibrate_(m, [x])):
        model = model_of(build(4))
        expected = model(x)
        assert len(verb(model).changed) == 1
        if not hasattr(model[1], "running_mean") or type(model[1]) is steadynorm.BatchRenorm2d:
            torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_its_attributes_go_with_it():
    model = model_of(WithAttributes(4, "first"))
    convert_(model, "batch_norm")
    assert type(model[1]) is steadynorm.BatchNorm2d
    assert (model[1].label, model[1].eps) == ("first", 1e-3)


def test_a_conversion_to_its_parents_kind_makes_it_the_parent():
    model = model_of(Plain(4))
    assert [each.name for each in convert_(model, "torch_batch_norm").changed] == ["1"]
    assert type(model[1]) is nn.BatchNorm2d
    assert not convert_(model, "torch_batch_norm").changed


@pytest.mark.parametrize("build", [AnyRank, StaysInEvaluation])
def test_one_with_torchs_forward_has_its_statistics_measured_and_folded_but_is_not_rebuilt(build):
    x = drawn(3, 3, 5, 5)
    model = model_of(build(4))
    assert set(statistics_of(model)) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    recalibrate_(model, [x])
    torch.testing.assert_close(model[1].running_mean, model[0](x).mean((0, 2, 3)))
    (refused,) = refusals(convert_, model, "batch_norm", example=x)
    assert "it is a subclass that overrides " in refused.why
    expected = model(x)
    assert len(fold_(model, x).changed) == 1
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("build", "name"), [(OwnWeight, "eps"), (OwnCall, "__call__"), (OwnTraining, "_train")])
def test_one_that_changes_what_forward_uses_is_refused_with_the_name(build, name):
    model = model_of(build(4))
    for verb, *rest in ((convert_, "batch_renorm"), (fold_, drawn(3, 3, 5, 5)), (recalibrate_, [drawn(3, 3, 5, 5)])):
        (refused,) = refusals(verb, model, *rest)
        assert f"it is a subclass of batch norm that overrides {name}. " in refused.why


class Tracker(nn.Module):
    """Normalizes observations by statistics that are no batch norm's."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        return (x - self.running_mean[:, None, None]) / self.running_var.sqrt()[:, None, None]


class AsParameters(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.running_mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(channels), requires_grad=False)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (Tracker, "no batch norm of torch's or ours. If it is a batch norm, register it: steadynorm.surgery.register"),
        (AsParameters, "no batch norm of torch's or ours"),
        (lambda c: nn.InstanceNorm2d(c, track_running_stats=True), "it is an instance norm"),
    ],
)
def test_whatever_keeps_running_statistics_is_named_where_another_is_changed_and_raised_alone(build, why):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ModuleDict({"odd": build(3)}))
    change = convert_(model, "batch_norm")
    assert [each.name for each in change.changed] == ["0"]
    assert [each.name for each in change.refused] == ["1.odd"]
    assert why in change.refused[0].why
    assert why in refusals(convert_, build(3), "batch_norm")[0].why

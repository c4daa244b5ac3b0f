"""A norm that is registered is taken by the verbs; one that differs from what it is registered as is named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadynorm.surgery import convert_, fold_, recalibrate_, register
from steadynorm.surgery.adapters import probe, registry
from tests.support.foreign import chain, look_like, randomize_foreign_
from tests.support.layers import drawn
from tests.support.surgery import refusals

X = drawn(5, 3, 6, 6)


@pytest.fixture(autouse=True)
def own_list(monkeypatch):
    """A list that each test may add to."""
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    monkeypatch.setattr(registry, "_NAMES", dict(registry._NAMES))
    monkeypatch.setattr(registry, "_FOUND", type(registry._FOUND)())
    monkeypatch.setattr(probe, "_FOUND", type(probe._FOUND)())


def norm_act():
    class NormAct(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.after = nn.GELU()

        def forward(self, x):
            return self.after(super().forward(x))

    return NormAct


def test_a_registered_class_folds_and_converts_with_its_tail():
    cls = norm_act()
    model = chain(cls)
    assert "overrides forward" in refusals(fold_, model, X)[0].why
    register(cls, tail=["after"])
    expected = model(X)
    change = convert_(model, "batch_norm")
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)
    change.undo()
    assert len(fold_(model, X).changed) == 2
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)


def test_a_tail_may_be_a_function():
    class Named(nn.BatchNorm2d):
        def forward(self, x):
            return F.elu(super().forward(x), 0.5)

    register(Named, tail=lambda module: {"act": nn.ELU(0.5)})
    model = chain(Named)
    expected = model(X)
    fold_(model, X)
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "a forward in evaluation is off by"),
        ({"tail": ["after"], "eps": 1e-3}, "a forward in evaluation is off by"),
        ({"tail": ["after"], "eps": 1.1e-5}, "a forward in evaluation is off by"),
        ({"tail": ["after"], "absolute_weight": True}, "a forward in evaluation is off by"),
        ({"tail": ["after"], "like": "frozen_batch_norm"}, "a forward in training is off by"),
        ({"tail": ["after"], "eps": "epsilon"}, "raises AttributeError"),
        ({"tail": ["after"], "dimensions": 3}, "raises ValueError: expected 4D input"),
    ],
)
def test_a_class_that_differs_from_what_it_is_registered_as_is_named(options, why):
    cls = norm_act()
    register(cls, **options)
    model = chain(cls)
    refused = refusals(convert_, model, "batch_norm")
    assert [each.name for each in refused] == ["1", "3"]
    assert "it does not match its registration" in refused[0].why
    assert why in refused[0].why


def test_a_class_that_differs_by_little_is_named():
    class Nearly(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) * 1.0001

    register(Nearly)
    assert "a forward in evaluation is off by 0.0001" in refusals(convert_, chain(Nearly), "batch_norm")[0].why


def test_a_name_alone_is_not_believed():
    @look_like("somebody.FrozenBatchNorm2d")
    class Other(nn.Module):
        def __init__(self, channels):
            super().__init__()
            for name in ("weight", "bias", "running_mean", "running_var"):
                self.register_buffer(name, torch.ones(channels))
            self.eps = 1e-5

        def forward(self, x):
            return x * self.weight.view(-1, 1, 1)  # leaves the statistics out

    assert "a forward in evaluation is off by" in refusals(fold_, chain(Other), X)[0].why


def test_what_is_registered_goes_before_what_the_name_says():
    cls = look_like("somebody.FrozenBatchNorm2d")(norm_act())
    assert "a forward in" in refusals(fold_, chain(cls), X)[0].why
    register(cls, tail=["after"])
    model = chain(cls)
    expected = model(X)
    assert len(fold_(model, X).changed) == 2
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)


def test_a_class_that_is_registered_again_is_tried_again():
    cls = norm_act()
    register(cls)
    assert "a forward in evaluation is off by" in refusals(fold_, chain(cls), X)[0].why
    register(cls, tail=["after"])
    assert len(fold_(chain(cls), X).changed) == 2
    register(cls, tail=["after"], absolute_weight=True)
    assert "a forward in evaluation is off by" in refusals(fold_, chain(cls), X)[0].why


def test_looking_at_a_layer_leaves_it_alone():
    cls = norm_act()
    register(cls, tail=["after"])
    model = nn.Sequential(randomize_foreign_(cls(3))).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    convert_(model, "torch_batch_norm")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_subclass_of_a_registered_class_counts_as_it():
    cls = norm_act()
    register(cls, tail=["after"])
    assert len(recalibrate_(chain(type("Mine", (cls,), {})), [X]).changed) == 2


@pytest.mark.parametrize("cls", [nn.BatchNorm2d(3), int, "torch.nn.BatchNorm2d"])
def test_only_a_class_of_modules_is_registered(cls):
    with pytest.raises(TypeError, match=r"register: cls must be a subclass of nn\.Module, got "):
        register(cls)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"like": "group_norm"}, "like must be one of batch_norm, "), ({"dimensions": 4}, "dimensions must be 0")],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        register(norm_act(), **options)

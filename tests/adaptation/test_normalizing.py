import pytest
import torch
from torch import nn

import steadynorm
from steadynorm.adaptation.normalizing import normalizing_by, stored_moments
from steadynorm.statistics import Moments
from tests.support.surgery import MIXED_INPUT, assert_state_equal, mixed, snapshot


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, steadynorm.BatchNorm2d])
def test_a_layer_normalizes_by_the_chosen_moments(layer: type[nn.Module]) -> None:
    norm = layer(2, eps=0.0)
    x = torch.tensor([[1.0, 6.0], [3.0, 10.0]]).view(2, 2, 1, 1)
    chosen = Moments(mean=torch.tensor([1.0, 2.0]), var=torch.tensor([4.0, 16.0]), count=9)
    with normalizing_by(norm, lambda name, input, stored: chosen):
        y = norm(x)
    assert y.flatten().tolist() == [0.0, 1.0, 1.0, 2.0]


def test_what_stays_stored_is_the_evaluation_of_the_model() -> None:
    model = mixed()
    expected = model(MIXED_INPUT)
    with normalizing_by(model.train(), lambda name, input, stored: stored):
        assert torch.equal(model(MIXED_INPUT), expected)


def test_layers_are_asked_by_name_for_the_input_they_get() -> None:
    model, asked = mixed(), {}
    with normalizing_by(model, lambda name, input, stored: asked.setdefault(name, (input, stored))[1]):
        model(MIXED_INPUT)
    assert list(asked) == ["1", "4", "8"]
    assert torch.equal(asked["1"][0], model[0](MIXED_INPUT))
    assert torch.equal(asked["8"][1].var, model[8].running_var)


def test_the_model_is_untouched_after_an_exception() -> None:
    model = mixed().train()
    before = snapshot(model)

    def choose(name: str, input: torch.Tensor, stored: Moments) -> Moments:
        if name == "8":
            raise RuntimeError("stop")
        return Moments(mean=stored.mean + 1, var=stored.var + 1, count=0)

    with pytest.raises(RuntimeError, match="stop"), normalizing_by(model, choose):
        model(MIXED_INPUT)
    assert_state_equal(model, before)
    assert all("forward" not in vars(module) for module in model.modules())


def test_the_model_is_untouched_when_its_layer_raises() -> None:
    model = mixed()
    before = snapshot(model)
    with (
        pytest.raises(RuntimeError),
        normalizing_by(model, lambda name, input, stored: Moments(mean=stored.mean[1:], var=stored.var[1:], count=0)),
    ):
        model(MIXED_INPUT)
    assert_state_equal(model, before)


def test_layers_without_running_statistics_are_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False))
    with (
        pytest.raises(ValueError, match="every batch norm must have running statistics, got 1 without"),
        normalizing_by(model, lambda name, input, stored: stored),
    ):
        pass


def test_stored_moments_are_copies() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2))
    stored_moments(model)["0"].mean.add_(1)
    assert model[0].running_mean.tolist() == [0.0, 0.0]

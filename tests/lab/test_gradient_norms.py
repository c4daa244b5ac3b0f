import pytest
import torch
from torch import nn

from steadynorm.lab.gradient_norms import gradient_norms, layer_gradients, percentiles, watched_weights


def test_percentiles_are_those_of_the_steps() -> None:
    norms = torch.arange(101.0).view(-1, 1).expand(-1, 2)
    low, high = percentiles(norms)
    assert (low.tolist(), high.tolist()) == ([5.0, 5.0], [95.0, 95.0])


def test_convolutions_and_linear_layers_are_watched_and_norms_are_not() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Sequential(nn.Linear(1, 1)))
    assert list(watched_weights(model)) == ["0", "2.0"]


def test_norms_are_of_each_weight_and_of_everything() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    for parameter, gradient in zip(model.parameters(), (3.0, 4.0, 12.0, 84.0), strict=True):
        parameter.grad = torch.full_like(parameter, gradient)
    assert gradient_norms(model, [model[0].weight]).tolist() == pytest.approx([3.0, 85.0])


def test_a_layer_is_summarised_over_the_steps() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    rows = layer_gradients(model, torch.stack([torch.arange(101.0), torch.zeros(101)], dim=1), epoch=7)
    found = [(row.step, row.subject, row.quantity, row.value) for row in rows]
    assert found == [
        (7, "0", f"grad_norm_{name}", value) for name, value in (("mean", 50.0), ("p5", 5.0), ("p95", 95.0))
    ]


def test_a_weight_without_a_gradient_has_the_norm_zero() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0](torch.ones(1, 2)).square().sum().backward()  # the second does not run
    norms = gradient_norms(model, list(watched_weights(model).values()))
    assert norms[0] > 0 and norms[1] == 0 and norms[2] >= norms[0]

"""Checks of running estimates, on faults in a few layers of a trained network: found, at the right layer, healed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from steadynorm.doctor import Severity, diagnose
from steadynorm.doctor.other_statistics import standing_out
from steadynorm.surgery import recalibrate_
from tests.support.doctor import batches

WARNING, ERROR = Severity.WARNING, Severity.ERROR


@pytest.fixture(scope="module")
def deep() -> nn.Sequential:
    """Six norms, with the statistics of its weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (1, 8, 8, 8, 8, 8):
        layers += [nn.Conv2d(inputs, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for x, y in batches(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    recalibrate_(model, batches(16, seed=2))
    return model.eval()


def worse(norm: Any) -> None:
    """Half of the channels get another's statistics, and all a larger deviation."""
    norm.running_mean.copy_(norm.running_mean.roll(1) + norm.running_var.sqrt())
    norm.running_var.mul_(6)


@pytest.mark.parametrize("layers", [("4",), ("1", "10"), ("7", "13")])
def test_a_gap_is_named_where_running_estimates_are_off_though_later_layers_win_as_much_back(
    deep: nn.Sequential, layers: tuple[str, ...]
) -> None:
    model = copy.deepcopy(deep)
    for name in layers:
        worse(model.get_submodule(name))
    found = diagnose(model, batches()).of("train-eval-gap")
    assert {each.layer for each in found} == set(layers)
    assert all(each.numbers["share"] > 0.5 for each in found)  # type: ignore[operator]


def test_a_gap_of_all_layers_is_named_at_none(deep: nn.Sequential) -> None:
    model: Any = copy.deepcopy(deep)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            worse(norm)
    assert len(diagnose(model, batches()).of("train-eval-gap")) == 1


@pytest.mark.parametrize(
    ("off", "named"),
    [
        ({"a": 0.5, "b": 0.1, "c": 0.1}, ("a",)),
        ({"a": 0.1, "b": 2.0, "c": 0.9, "d": 0.2, "e": 0.1}, ("b", "c")),
        ({"a": 9.0, "b": 0.4}, ("a", "b")),
        ({"a": 0.5, "b": 0.4, "c": 0.3, "d": 0.25}, ()),
        ({"a": 0.1, "b": 0.0}, ()),
        ({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 0.1}, ()),
        ({"a": 1.0}, ("a",)),
        ({}, ()),
    ],
)
def test_layers_stand_out_where_few_are_off_and_all_others_clearly_less(
    off: dict[str, float], named: tuple[str, ...]
) -> None:
    assert standing_out(off) == named

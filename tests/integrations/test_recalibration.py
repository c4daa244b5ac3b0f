"""What the callbacks share: how far they measure, and what they leave out."""

import pytest
import torch
from torch import nn

from steadynorm.integrations.recalibration import Recalibration
from steadynorm.surgery.batches import feed
from tests.support.fitting import running
from tests.support.layers import drawn


def measured(**options):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(part for _ in range(8) for part in (nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()))
    ).double()
    work = Recalibration("me", None, 50, None, options)
    work.run(model, drawn(600, 6).split(30), feed)
    return work.change, running(model)


def test_few_passes_are_made_and_are_near_enough():
    change, found = measured()
    exact, expected = measured(settled=0.0)
    assert change.measured["passes"] < exact.measured["passes"]
    assert change.measured["moved"] <= 0.01
    for name, each in found.items():
        scale = expected[name.replace("mean", "var")].sqrt() if "mean" in name else expected[name]
        assert float(((each - expected[name]).abs() / scale).max()) < 0.02


def test_what_is_left_out_is_left_out_whatever_where_says():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(6), nn.BatchNorm1d(6), nn.BatchNorm1d(6)).double()
    work = Recalibration("me", [drawn(8, 6)], 50, None, {"where": lambda name, _: name in "01"})
    work.run(model, None, feed, but=frozenset("0"))
    assert [each.name for each in work.change.changed] == ["1"]


def test_where_all_are_left_out_it_is_said():
    work = Recalibration("me", [drawn(8, 6)], 50, None, {})
    with pytest.warns(UserWarning, match=r"^me: no statistics were measured again: all layers were frozen\.$"):
        work.run(nn.BatchNorm1d(6).double(), None, feed, but=frozenset([""]))
    assert work.change is None

"""What makes a sample's output depend on its batch, in layers of any origin, and what only looks so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from steadynorm.doctor import Severity, diagnose


class Calls(nn.Module):
    """Code between two layers."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Attention(nn.Module):
    """Gives (N, L, C) to an attention."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


class Counting(nn.Module):
    """Batch norm by hand, the root of a larger part."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.linear = nn.Linear(1, 1), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((x - x.mean((0, 1))) / x.std((0, 1)))


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        (Calls(lambda x: functional.batch_norm(x, None, None, training=True)), "1"),
        (Calls(lambda x: (x - x.mean(0)) / x.std(0)), "1"),
        (Calls(lambda x: functional.layer_norm(x.movedim(0, -1), (len(x),)).movedim(-1, 0)), "1"),
        (Attention(batch_first=False), "1.attention"),
        (Counting(), "1"),
    ],
    ids=["functional", "by hand", "over the batch", "attention", "in a part"],
)
def test_whatever_mixes_samples_is_named(layer: nn.Module, place: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), layer, nn.ReLU(), nn.Linear(6, 2)).eval()
    found = diagnose(model, [torch.randn(16, 5, 6)]).of("batch-dependence")
    assert [(each.layer, each.severity) for each in found] == [(place, Severity.WARNING)]


@pytest.mark.parametrize(
    "layer",
    [
        Attention(batch_first=True),
        Calls(lambda x: functional.dropout(x, 0.5)),  # in training whatever the mode is
        Calls(lambda x: x + 0.1 * torch.randn_like(x)),
        Calls(lambda x: x.bfloat16().float()),
        nn.Sequential(Calls(lambda x: x.transpose(0, 1)), nn.LSTM(6, 6), Calls(lambda x: x[0].transpose(0, 1))),
    ],
    ids=["attention", "dropout", "noise", "rounded", "sequence first"],
)
def test_what_is_drawn_or_rounded_or_turned_mixes_nothing(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 2)).eval()
    assert diagnose(model, [torch.randn(16, 5, 6)]).of("batch-dependence") == ()


@pytest.mark.filterwarnings("ignore")
def test_a_dynamic_scale_is_a_note() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    x = torch.randn(16, 64)
    x[12] *= 50
    found = diagnose(quantised, [x]).of("batch-dependence")
    assert {each.severity for each in found} == {Severity.NOTE}


@pytest.mark.filterwarnings("ignore")
def test_a_script_is_looked_at_without_hooks() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()
    assert diagnose(torch.jit.script(model), [torch.randn(16, 6)]).is_healthy


def test_an_extreme_that_half_of_the_batch_has_too_is_seen() -> None:
    x = torch.rand(16, 3, generator=torch.Generator().manual_seed(0))
    x[5] = 2.0
    model = nn.Sequential(Calls(lambda each: each / each.max()), nn.BatchNorm1d(3)).eval()
    found = diagnose(model, [x]).of("batch-dependence")
    assert [(each.layer, each.severity) for each in found] == [("0", Severity.WARNING)]

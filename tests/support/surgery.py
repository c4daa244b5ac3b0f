"""Models to operate on, and what must hold of them afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm
from steadynorm.surgery import NothingDoneError, Refused
from tests.support.layers import drawn, randomize_

__all__ = ["Activated", "assert_state_equal", "mixed", "refusals", "snapshot"]


class Activated(nn.BatchNorm2d):
    """A subclass that does more than its parent, unregistered."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def refusals(verb: Any, *arguments: Any, **named: Any) -> tuple[Refused, ...]:
    """What a verb refuses where that is all it could do: it must raise."""
    with pytest.raises(NothingDoneError, match=f"{verb.__name__}: nothing can be changed") as found:
        verb(*arguments, **named)
    return found.value.refused


def mixed(**ours: Any) -> nn.Sequential:
    """Torch's norms and ours, 1d and 2d, with random numbers in them, in float64 and in evaluation."""
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, groups=2),
        steadynorm.BatchNorm2d(48, activation="relu", **ours),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(192, 7),
        nn.BatchNorm1d(7, eps=1e-3, momentum=None),
    )
    return randomize_(model.double()).eval()


MIXED_INPUT = drawn(5, 3, 8, 8)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that undo must bring back: modules, parameters and buffers as objects and as bits, flags."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        state[f"{name}|class"] = (type(module), module, module.training)
        for table in (module._parameters, module._buffers):
            for key, value in table.items():
                bits = None if value is None else value.detach().clone()
                state[f"{name}|{key}"] = (value, bits, None if value is None else value.requires_grad)
    return state


def assert_state_equal(model: nn.Module, before: dict[str, Any]) -> None:
    now = snapshot(model)
    assert list(now) == list(before)
    for key, (first, second, third) in before.items():
        assert now[key][0] is first, key
        assert now[key][2] == third, key
        if isinstance(second, Tensor):
            assert same_bits(now[key][1], second), key


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bits, NaN included."""
    raw = (each.contiguous().flatten().view(torch.uint8) if each.numel() else each for each in (a.clone(), b.clone()))
    first, second = raw
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(first, second))

"""The step of training: how often a call counts a batch, how far it moves a mean, and models that refuse it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from steadynorm.doctor import diagnose
from tests.support.doctor import batches


class Demanding(nn.Module):
    """Asks for targets in training, and for whole batches, by assertions, as torchvision's detectors do."""

    def __init__(self, inner: nn.Module, size: int) -> None:
        super().__init__()
        self.inner, self.size = inner, size

    def forward(self, x: torch.Tensor, targets: object = None) -> torch.Tensor:
        assert not self.training or targets is not None, "targets should not be none when in training mode"
        assert len(x) == self.size, "batches are whole"
        return self.inner(x)


def test_a_model_that_asks_for_more_in_training_is_looked_at_in_evaluation(model: Any) -> None:
    detector = Demanding(model, size=32).eval()
    diagnosis = diagnose(detector, batches())
    assert [line for line in diagnosis.unread if "targets should not be none" in line]
    assert [line for line in diagnosis.unread if "outputs that depend on the batch" in line and "whole" in line]
    assert diagnosis.is_healthy and len(diagnosis.layers) == 2
    assert not detector.training and not model.training


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, again: bool) -> None:
        super().__init__()
        self.inner, self.again = inner, again

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x, use_reentrant=False) if self.again else self.inner(x)


@pytest.mark.parametrize("again", [False, True])
def test_checkpointing_counts_a_batch_twice(model: Any, again: bool) -> None:
    model[3], model[4] = Checkpointed(nn.Sequential(model[3], model[4]), again), nn.Identity()
    found = diagnose(model, batches()).of("double-update")
    assert [each.layer for each in found] == (["3.inner.1"] if again else [])


def test_a_layer_that_evaluates_while_the_model_trains_counts_nothing(model: Any) -> None:
    model[3], model[4] = Checkpointed(nn.Sequential(model[3], model[4]), True), nn.Identity()
    model.train()
    assert diagnose(model, batches()).of("double-update") != ()
    model[3].inner[1].eval()
    assert diagnose(model, batches()).of("double-update") == ()


class Bypassing(nn.Module):
    """Calls a layer's forward by itself, so that no hook of it runs."""

    def __init__(self, inner: nn.Module, times: int) -> None:
        super().__init__()
        self.inner, self.times = inner, times

    def forward(self, x: Tensor) -> Any:
        for _ in range(self.times if self.training else 1):
            y = self.inner.forward(x)
        return y


@pytest.mark.parametrize(("times", "found"), [(1, []), (2, ["4.inner"])])
def test_a_call_that_no_hook_sees_is_a_call(model: Any, times: int, found: list[str]) -> None:
    model[4] = Bypassing(model[4], times)
    assert [each.layer for each in diagnose(model.train(), batches()).of("double-update")] == found


@pytest.mark.filterwarnings("ignore")  # of tracing
def test_calls_within_a_trace_are_not_counted(model: Any) -> None:
    traced = torch.jit.trace(model.train(), batches()[0][0], check_trace=False)
    diagnosis = diagnose(traced.eval(), batches())
    assert diagnosis.of("statistics-moved-in-eval") != () and diagnosis.of("double-update") == ()


class ByHand(nn.BatchNorm2d):
    """Moves its running statistics itself; torch's forward moves them too, unless a flag forbids it."""

    def __init__(self, features: int, weight: float) -> None:
        super().__init__(features)
        self.weight_by_hand = weight

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                self.running_mean.lerp_(input.mean((0, 2, 3)), self.weight_by_hand)
                self.running_var.lerp_(input.var((0, 2, 3)), self.weight_by_hand)
        return super().forward(input)


class OfTheOld(nn.BatchNorm2d):
    """Weighs the old value by momentum, as other frameworks do."""

    def forward(self, input: Tensor) -> Tensor:
        assert self.momentum is not None
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.training, 1 - self.momentum
        )


@pytest.mark.parametrize(("momentum", "found"), [(0.1, True), (0.9, True), (0.3, True), (0.5, False)])
def test_a_class_that_weighs_the_old_value_by_momentum_is_named(model: Any, momentum: float, found: bool) -> None:
    own = OfTheOld(8, momentum=momentum)
    own.load_state_dict(model[4].state_dict())
    model[4] = own
    spoken = diagnose(model.train(), batches()).of("momentum-convention")
    assert [(each.layer, "of the old value" in each.problem) for each in spoken] == [("4", momentum < 0.5)] * found
    model[4].momentum = 0.1
    assert diagnose(model).of("momentum-convention") == ()


@pytest.mark.parametrize(("weight", "found"), [(0.1, [1]), (0.0, [])])
def test_an_update_by_hand_beside_torch_s_is_counted(model: Any, weight: float, found: list[int]) -> None:
    own = ByHand(8, weight)
    own.load_state_dict(model[4].state_dict())
    model[4] = own.eval()
    diagnosis = diagnose(model.train(), batches())
    assert [each.numbers["more"] for each in diagnosis.of("double-update")] == found

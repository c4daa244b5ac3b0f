"""Masked batch norm beside torch's batch norm, and how to run them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steadynorm.layers import MaskedBatchNorm1d
from tests.support.layers import drawn, make_native, randomize_

__all__ = ["LENGTHS", "SHAPE", "assert_same", "each_mode", "mask_of", "outcome", "packed", "pair"]

SHAPE = (4, 3, 5)
LENGTHS = torch.tensor([5, 2, 0, 3])
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])


def pair(**arguments: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's with the same random numbers, in float64."""
    ours_alone = ("activation", "update_every", "nonfinite")
    native_arguments = {name: value for name, value in arguments.items() if name not in ours_alone}
    ours, native = MaskedBatchNorm1d(3, **arguments), make_native(nn.BatchNorm1d, 3, **native_arguments)
    return randomize_(ours.double()), randomize_(native.double())


def mask_of(*shape: int, seed: int = 3) -> Tensor:
    """Where there are values, for input of such a shape."""
    return drawn(shape[0], *shape[2:], seed=seed) > -0.3


def packed(values: Tensor, mask: Tensor) -> Tensor:
    """The valid values, shape (values, C)."""
    return values.movedim(1, -1)[mask]


def outcome(
    forward: Callable[..., Tensor],
    layer: nn.Module,
    shape: tuple[int, ...],
    *,
    with_residual: bool = True,
    seed: int = 0,
) -> dict[str, Tensor | None]:
    """Result, gradients and buffers of one forward and backward, by name."""
    x, residual = (drawn(*shape, seed=seed + each).mul(2).add(0.5).requires_grad_() for each in range(2))
    layer.zero_grad()
    y = forward(x, residual if with_residual else None)
    y.backward(drawn(*shape, seed=9))
    gradients = {f"d{name}": parameter.grad for name, parameter in layer.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, "dresidual": residual.grad} | gradients | dict(layer.named_buffers())


def assert_same(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    """Compare by name."""
    assert list(actual) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")

"""Our layer and torch's, side by side with the same numbers in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm
from steadynorm.layers import batch_norm_state

__all__ = ["CLASSES", "SHAPES", "drawn", "each_shape", "make_native", "make_pair", "randomize_", "repr_of_torchs"]

CHANNELS = 3
CLASSES: dict[int, tuple[type[nn.Module], type[nn.Module]]] = {
    2: (steadynorm.BatchNorm1d, nn.BatchNorm1d),
    3: (steadynorm.BatchNorm1d, nn.BatchNorm1d),
    4: (steadynorm.BatchNorm2d, nn.BatchNorm2d),
    5: (steadynorm.BatchNorm3d, nn.BatchNorm3d),
}
"""Number of dimensions of the input -> our class and torch's."""
SHAPES = ((6, CHANNELS), (4, CHANNELS, 5), (4, CHANNELS, 2, 3), (4, CHANNELS, 2, 3, 2))

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{len(shape)}d")


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal values, the same for the same seed in every dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def randomize_(module: nn.Module, *, seed: int = 100) -> nn.Module:
    """Write random numbers into parameters and statistics, positive ones into variances.

    The counter, and what only our layers keep, stays.
    """
    with torch.no_grad():
        for offset, (name, tensor) in enumerate(sorted(batch_norm_state(module.state_dict()).items())):
            if tensor.is_floating_point():
                values = drawn(*tensor.shape, seed=seed + offset)
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return module


def make_native(cls: type[nn.Module], *arguments: Any, bias: bool = True, **named: Any) -> nn.Module:
    """A batch norm of torch's; its constructor takes ``bias`` since 2.13 only."""
    layer = cls(*arguments, **named)
    if not bias:
        layer.register_parameter("bias", None)
    return layer


def make_pair(shape: tuple[int, ...], **arguments: Any) -> tuple[nn.Module, nn.Module]:
    """Our layer and torch's for such an input, in float64, holding the same random numbers."""
    own, torchs = CLASSES[len(shape)]
    ours, native = own(CHANNELS, **arguments).double(), make_native(torchs, CHANNELS, **arguments).double()
    randomize_(native)
    ours.load_state_dict(native.state_dict())
    return ours, native


def repr_of_torchs(layer: nn.Module) -> str:
    """What a batch norm of torch's shows, with its bias, which torch shows since 2.13."""
    text = repr(layer)
    return text if "bias=" in text else f"{text[:-1]}, bias={layer.bias is not None})"

"""Synthetic shifts of clean images, so that a calibration can measure their effect on a network.

Source: Deng & Zheng 2021 (arXiv 2007.02915), who predict accuracy without labels from such sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["SHIFTS", "shifts_of"]

Shift = Callable[[Tensor, float, float, torch.Generator], Tensor]
"""Inputs (N, C, ...), strength in (0, 1], standard deviation of clean inputs, random numbers -> shifted inputs."""


def _normal(shape: tuple[int, ...], x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(x)


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator).to(x)


def add_noise(x: Tensor, strength: float, unit: float, generator: torch.Generator) -> Tensor:
    """Add normal noise to each value."""
    return x + 1.2 * strength * unit * _normal(tuple(x.shape), x, generator)


def replace_values(x: Tensor, strength: float, unit: float, generator: torch.Generator) -> Tensor:
    """Set random values to the smallest or the largest one."""
    ends = torch.where(_uniform(x, generator) < 0.5, x.amin(), x.amax())
    return torch.where(_uniform(x, generator) < 0.3 * strength, ends, x)


def flatten_contrast(x: Tensor, strength: float, unit: float, generator: torch.Generator) -> Tensor:
    """Reduce the contrast of each input around its mean."""
    mean = x.flatten(1).mean(1).view(-1, *(1,) * (x.dim() - 1))
    return mean + (1 - 0.9 * strength) * (x - mean)


def add_offset(x: Tensor, strength: float, unit: float, generator: torch.Generator) -> Tensor:
    """Make all inputs lighter or darker, within the range of clean ones."""
    sign = 1 if torch.rand(1, generator=generator) < 0.5 else -1
    return (x + 2 * sign * strength * unit).clamp(x.amin(), x.amax())


def shift_channels(x: Tensor, strength: float, unit: float, generator: torch.Generator) -> Tensor:
    """Scale and shift each channel separately, equally in all inputs."""
    shape = (x.shape[1], *(1,) * (x.dim() - 2)) if x.dim() > 1 else ()
    scale = (strength * _normal(shape, x, generator)).exp()
    return scale * x + 1.5 * strength * unit * _normal(shape, x, generator)


def blur(x: Tensor, strength: float, unit: float, generator: torch.Generator) -> Tensor:
    """Average over squares of 3, 5 or 7 pixels."""
    reach = math.ceil(3 * strength)
    return functional.avg_pool2d(functional.pad(x, (reach,) * 4, mode="replicate"), 2 * reach + 1, 1)


def coarsen(x: Tensor, strength: float, unit: float, generator: torch.Generator) -> Tensor:
    """Make pixels 2, 3 or 4 times as large."""
    times = 1 + math.ceil(3 * strength)
    sides = (max(1, x.shape[2] // times), max(1, x.shape[3] // times))
    return functional.interpolate(functional.adaptive_avg_pool2d(x, sides), size=x.shape[2:])


def add_haze(x: Tensor, strength: float, unit: float, generator: torch.Generator) -> Tensor:
    """Add a smooth light to each image, and reduce its contrast."""
    field = _normal((len(x), 1, 4, 4), x, generator)
    field = functional.interpolate(field, size=x.shape[2:], mode="bicubic")
    light = 2 * strength * unit
    room = x.amax() - x.mean()
    return (x + light * (1 + 0.7 * field)) * (room / (room + light))


SHIFTS: dict[str, Shift] = {
    "noise": add_noise,
    "values": replace_values,
    "contrast": flatten_contrast,
    "offset": add_offset,
    "channels": shift_channels,
    "blur": blur,
    "coarse": coarsen,
    "haze": add_haze,
}
"""Families: the first five for inputs of any shape, the others for images (N, C, H, W)."""
_FOR_ANY = 5


def shifts_of(x: Tensor) -> dict[str, Shift]:
    """Return the shift families for these inputs; none for inputs that are not floats, such as tokens."""
    if not x.is_floating_point():
        return {}
    return SHIFTS if x.dim() == 4 else dict(list(SHIFTS.items())[:_FOR_ANY])

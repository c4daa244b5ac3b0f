"""Compile the CPU kernels before they are needed: ``steadynorm warmup``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import torch

import steadynorm
from steadynorm.bench.cases import DType, Layout
from steadynorm.layers.kinds import FAMILY
from steadynorm.ops.dispatch import SMALL_WITHOUT_TORCH, smallest_for_numba, why_unusable
from steadynorm.reporting.failure import UserError
from steadynorm.reporting.progress import open_display

__all__ = ["WarmupConfig", "warmup"]

if TYPE_CHECKING:
    Name = str
else:
    Name = Literal[tuple(FAMILY)]  # the command line shows these
Activations = Literal["none", "relu", "leaky_relu", "silu"]


@dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """Compile the CPU kernels for a list of inputs, and keep them on disk for every later process.

    Each combination takes ten to thirty seconds the first time on a machine, and half a second after that.
    """

    shapes: tuple[str, ...] = ("32x64x56x56",)
    """Inputs as NxCx...: two to five numbers. Sizes that are too small for the kernels are named and left out."""
    layers: tuple[Name, ...] = ("batch_norm",)
    """Layers, as steadynorm compare names them."""
    activations: tuple[Activations, ...] = ("none", "relu")
    """Activations that are fused into the layers."""
    dtypes: tuple[DType, ...] = ("float32",)
    """Number types of the inputs."""
    layouts: tuple[Layout, ...] = ("contiguous",)
    """Memory layouts of the inputs; an input NxC has only one."""
    residual: bool = False
    """Compile for layers that add a residual."""
    json: bool = False
    """Print what was compiled as JSON on standard output."""


def warmup(config: WarmupConfig) -> None:
    """Compile, show the progress, and report the time."""
    trials, small = _plan(config)
    done: list[dict[str, Any]] = []
    if (reason := why_unusable("numba")) is not None:
        raise UserError(f"the CPU kernels cannot be used: {reason}")
    with open_display(stream=sys.stderr if config.json else sys.stdout, timed=True) as display:
        for shape in small:
            display.message(f"{shape}: too small for the CPU kernels; torch's kernels run there")
        for number, (name, trial) in enumerate(trials.items(), start=1):
            display.begin(name, number=number, of=len(trials))
            result = trial()
            display.end(name)
            taken = f"{result.functions} functions compiled" if result.functions else "was on disk"
            display.message(f"[{number}/{len(trials)}] {name}: {taken}, {result.seconds:.1f} s")
            done.append(asdict(result) | {"name": name, "number": number, "of": len(trials)})
        total = sum(each["seconds"] for each in done)
        display.message(f"{sum(each['functions'] for each in done)} functions compiled in {total:.1f} s")
    if config.json:
        print(json.dumps({"compiled": done, "too_small": small, "seconds": total}, indent=1))


def _plan(config: WarmupConfig) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """Return each trial by a unique name, and the shapes for which no layer needs kernels."""
    trials: dict[str, Callable[[], Any]] = {}
    small = []
    for text in config.shapes:
        shape = _shape(text)
        layouts: tuple[Layout, ...] = config.layouts if len(shape) > 2 else ("channels_last",)
        dimensions = max(len(shape) - 2, 1)
        found = {
            f"{FAMILY[name].classes[dimensions].__name__} {activation} {dtype} {layout}": _trial(
                config, name, dimensions, activation, dtype, layout
            )
            for name, dtype, layout, activation in product(config.layers, config.dtypes, layouts, config.activations)
            if not _is_small(shape, dtype, layout, name, fused=activation != "none" or config.residual)
        }
        if not found:
            small.append(text)
        trials |= found
    return trials, small


def _trial(
    config: WarmupConfig, name: Name, dimensions: int, activation: str, dtype: str, layout: Layout
) -> Callable[[], Any]:
    def run() -> Any:  # noqa: ANN401 (a result of steadynorm.warmup)
        kind = FAMILY[name]
        needed = {option: value for option, value in kind.arm(0).items() if kind.options()[option] is None}
        layer = kind.classes[dimensions](8, activation=None if activation == "none" else activation, **needed)
        given: dict[str, Any] = {"dtypes": (getattr(torch, dtype),), "layouts": (layout,), "residual": config.residual}
        return next(iter(steadynorm.warmup(layer, **given)))

    return run


def _is_small(shape: tuple[int, ...], dtype: str, layout: Layout, name: Name, *, fused: bool) -> bool:
    x = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
    if layout == "channels_last" and len(shape) > 3:
        x = x.contiguous(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    has_rival = name in ("batch_norm", "frozen_batch_norm")
    return x.numel() < (smallest_for_numba(x, fused=fused) if has_rival else SMALL_WITHOUT_TORCH)


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if not (2 <= len(parts) <= 5 and all(part.isdecimal() and int(part) > 0 for part in parts)):
        raise UserError(f"--shapes: must be two to five positive numbers as NxCx..., got {text!r}")
    return tuple(map(int, parts))

"""Cases to measure: operations, shapes, dtypes, layouts, and the least bytes that each must move."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from steadynorm.bench.benchmark import Flags

__all__ = ["BIG_MB", "COPIES", "SHAPES", "Case", "DType", "GridFlags", "Layout", "Network", "Op", "make_grid"]

Op = Literal["norm", "norm_relu", "norm_relu_residual"]
DType = Literal["float32", "bfloat16", "float16"]
Layout = Literal["contiguous", "channels_last"]
Network = Literal["cnn", "resnet50"]

COPIES: dict[Op, int] = {"norm": 4, "norm_relu": 4, "norm_relu_residual": 6}
"""Least traffic of forward and backward, in copies of x, each of which reads and writes it once.

The statistics must be known before the first y, and the sums over dy before the first dx, so forward and backward
read what they work on twice. Without a residual: x, x, write y; x, dy, x, dy, write dx. With one: x, x, residual,
write y; x, dy, residual twice, write dx and d_residual.
"""

SHAPES: dict[Network, tuple[tuple[int, int, int], ...]] = {
    # The lab's network with widths 32, 64, 128 on 32x32 images.
    "cnn": ((32, 32, 32), (64, 16, 16), (128, 8, 8)),
    # He et al. 2016 (arXiv 1512.03385), table 1, on 224x224 images. The first block of a stage halves the image in
    # its 3x3 convolution, as torch's users have it, so that its first norm still sees the larger one.
    "resnet50": (
        (64, 112, 112),
        (64, 56, 56),
        (256, 56, 56),
        (128, 56, 56),
        (128, 28, 28),
        (512, 28, 28),
        (256, 28, 28),
        (256, 14, 14),
        (1024, 14, 14),
        (512, 14, 14),
        (512, 7, 7),
        (2048, 7, 7),
    ),
}
"""The distinct inputs (C, H, W) of a network's batch norms."""

BIG_MB = {"cpu": 8, "cuda": 64}
"""Size of x from which memory bandwidth decides, not the cost of starting; 10⁶ bytes."""

BATCHES = (1, 8, 32, 128, 256)
USUAL_BATCHES = (1, 32)  # measured by default, as well as the largest batch that the bound on memory allows


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operation on one input, forward and backward."""

    op: Op
    network: Network
    shape: tuple[int, int, int, int]
    """N, C, H, W."""
    dtype: DType
    layout: Layout

    @property
    def label(self) -> str:
        """Unique within a grid."""
        return f"{self.op} {'x'.join(map(str, self.shape))} {self.dtype} {self.layout}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of x."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def x_bytes(self) -> int:
        """Size of x."""
        return math.prod(self.shape) * self.torch_dtype.itemsize

    @property
    def floor_bytes(self) -> int:
        """Bytes that forward and backward together must at least read and write."""
        return COPIES[self.op] * 2 * self.x_bytes


@dataclass(frozen=True, kw_only=True)
class GridFlags(Flags):
    """Inputs to measure."""

    shapes: tuple[Network, ...] = ("cnn", "resnet50")
    """Networks whose norms' inputs are timed: the lab's cnn on 32x32 images, ResNet-50 on 224x224 images."""
    batches: tuple[int, ...] = ()
    """Batch sizes; default: 1, 32 and the largest of 1, 8, 32, 128, 256 that --max-mb allows for the shape."""
    dtypes: tuple[DType, ...] = ("float32", "bfloat16")
    """Number types of the input; parameters and statistics are float32, as under autocast."""
    layouts: tuple[Layout, ...] = ("contiguous", "channels_last")
    """Memory layouts of the input."""


def make_grid(
    ops: Sequence[Op], flags: GridFlags, *, max_mb: float, min_mb: float = 0.0
) -> tuple[list[Case], dict[Case, str]]:
    """Combine all values with each other.

    Args:
        ops: outermost in the order of the result.
        flags: then dtypes, layouts, networks, shapes, batches.
        max_mb: upper bound on the size of x in 10⁶ bytes.
        min_mb: lower bound.

    Returns:
        the cases, and case -> reason for those that the bounds exclude.
    """
    cases, skipped = [], {}
    for op, dtype, layout, network in itertools.product(ops, flags.dtypes, flags.layouts, flags.shapes):
        for shape in SHAPES[network]:
            for batch in flags.batches or _usual_batches(shape, dtype, max_mb):
                case = Case(op=op, network=network, shape=(batch, *shape), dtype=dtype, layout=layout)
                if case.x_bytes > max_mb * 1e6:
                    skipped[case] = f"x is larger than --max-mb {max_mb:g}"
                elif case.x_bytes < min_mb * 1e6:
                    skipped[case] = f"x is smaller than --min-mb {min_mb:g}"
                else:
                    cases.append(case)
    return cases, skipped


def _usual_batches(shape: tuple[int, int, int], dtype: DType, max_mb: float) -> list[int]:
    bytes_each = math.prod(shape) * getattr(torch, dtype).itemsize
    largest = [batch for batch in BATCHES if batch * bytes_each <= max_mb * 1e6][-1:]
    return sorted({*USUAL_BATCHES, *largest})

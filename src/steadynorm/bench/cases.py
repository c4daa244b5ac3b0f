"""What is measured: operations, shapes, dtypes, layouts, and the bytes that each cannot do without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["BATCHES", "COPIES", "SHAPES", "Case", "DType", "Layout", "Network", "Op", "Skipped", "make_grid"]

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

BATCHES = (1, 8, 32, 128, 256)
USUAL_BATCHES = (1, 32)  # measured by default, beside the largest batch that the bound on memory allows


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
        """What forward and backward together must at least read and write."""
        return COPIES[self.op] * 2 * self.x_bytes


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A case that was asked for and is not measured."""

    case: Case
    reason: str


def make_grid(
    *,
    ops: Sequence[Op],
    networks: Sequence[Network],
    batches: Sequence[int],
    dtypes: Sequence[DType],
    layouts: Sequence[Layout],
    max_mb: float,
) -> tuple[list[Case], list[Skipped]]:
    """Combine everything with everything.

    Args:
        ops: outermost in the order of the result; then dtypes, layouts, networks, shapes, batches.
        networks: whose shapes.
        batches: N; none stand for 1, 32 and the largest of 1, 8, 32, 128, 256 under the bound.
        dtypes: of x.
        layouts: of x.
        max_mb: bound on the size of x in 10⁶ bytes.

    Returns:
        what to measure, and what the bound leaves out.
    """
    every = [
        Case(op=op, network=network, shape=(batch, *shape), dtype=dtype, layout=layout)
        for op in ops
        for dtype in dtypes
        for layout in layouts
        for network in networks
        for shape in SHAPES[network]
        for batch in batches or _usual_batches(shape, dtype, max_mb)
    ]
    reason = f"x is larger than --max-mb {max_mb:g}"
    fits = [case.x_bytes <= max_mb * 1e6 for case in every]
    return (
        [case for case, small in zip(every, fits, strict=True) if small],
        [Skipped(case=case, reason=reason) for case, small in zip(every, fits, strict=True) if not small],
    )


def _usual_batches(shape: tuple[int, int, int], dtype: DType, max_mb: float) -> list[int]:
    bytes_each = math.prod(shape) * getattr(torch, dtype).itemsize
    largest = [batch for batch in BATCHES if batch * bytes_each <= max_mb * 1e6][-1:]
    return sorted({*USUAL_BATCHES, *largest})

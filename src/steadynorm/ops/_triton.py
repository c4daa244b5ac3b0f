"""The four kernels on a GPU: float32, bfloat16 and float16, contiguous or channels-last.

Signatures and meaning are those of ``reference.py``. Arithmetic is float32; sums over tiles are merged in float64.
Memory traffic takes nearly all of the time, and the design minimizes it:

- Threads read 16 bytes at a time if sizes allow, in tiles placed in three ways (``_triton_kernels``). Channels-last
  tensors are matrices (N·S, C). Contiguous tensors are read in runs of 16 neighbours of one plane, which share one
  channel lookup. If S is not a multiple of 16 (14·14, 7·7), they are transformed as matrices (N, C·S), and a few tiles
  share the channel lookup. Sums take runs as long as S allows, and the matrix for short planes.
- Every kernel reads its inputs once: moments are measured about the mean of a program's first tile.
- Tiles are distributed over about three programs per multiprocessor, with loads three tiles ahead, and each program
  sums its tiles; a second kernel merges the sums. There are no atomics: the same input gives the same bits.
- Values are transformed from the end, because the L2 cache still holds what the sums read last.
- Block sizes follow from shape, dtype and device; nothing is autotuned.

With ``TRITON_INTERPRET=1`` set at import, the kernels also take CPU tensors, for tests.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steadynorm.ops import _triton_kernels as kernels
from steadynorm.ops._layout import like
from steadynorm.ops._operands import check_operands
from steadynorm.ops.reference import Activation

__all__ = ["moments", "transform", "transform_grad", "transform_sums", "unsupported_reason"]

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_VALUES, MOST_PER_CHANNEL = 1 << 34, 1 << 30  # row indices have 32 bits
WARPS = 8
VALUES_BYTES, SUMS_BYTES = 8192, 4096
"""Bytes of one tensor in a tile: two vectors of 16 bytes per thread; one for sums, which need more registers."""
RUN = 16
"""Longest run of neighbours in one plane: Triton specializes on sizes that are multiples of 16, not of more."""
WIDTHS = (128, 64, 32, 16)
"""Columns of a tile, widest first: 128 of bfloat16 are 256 contiguous bytes."""
SHORT_PLANE, MANY_IMAGES = 64, 128
"""Planes of fewer values than the first, in at least as many images as the second, are summed as a matrix."""
MOST_PARTIALS = 2048
MERGED = 256  # partial sums that one program merges
STEPS = 4
"""Tiles of a program that share the lookup of every column's channel."""


def unsupported_reason(x: Tensor, *others: Tensor | None) -> str | None:
    """Return why these kernels cannot take the tensors; None if they can.

    The others may have other strides than x; they are then copied.
    """
    if not (x.is_cuda or (INTERPRETED and x.device.type == "cpu")) or x.layout != torch.strided:
        return "it is not a dense tensor in the memory of a GPU"
    if x.dtype not in DTYPES:
        return f"{x.dtype} is not float32, bfloat16 or float16"
    if any(other is not None and other.dtype != x.dtype for other in others):
        return "the tensors differ in dtype"
    if x.dim() < 2 or x.numel() == 0:
        return "it is empty or has no channels"
    if not (_is_rows(x) or x.is_contiguous()):
        return "it is neither contiguous nor channels-last"
    if x.is_neg():
        return "its negation is lazy (x.is_neg()), and its memory has the opposite signs"
    if x.numel() >= MOST_VALUES or x.numel() // x.shape[1] >= MOST_PER_CHANNEL:
        return "it has too many values for row indices of 32 bits"
    return None


def _check(where: str, x: Tensor, beside: Mapping[str, Tensor | None], per_channel: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless a kernel can read the memory of the tensors."""
    check_operands(where, x, unsupported_reason(x, *beside.values()), beside, per_channel)


def moments(x_NCS: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`steadynorm.ops.reference.moments`."""
    _check("moments", x_NCS, {}, {})
    cut, channels = _cut_for_sums(x_NCS), x_NCS.shape[1]
    shares = x_NCS.new_empty((3, channels, cut.partials), dtype=torch.float32).unbind()
    mean, var = x_NCS.new_empty((2, channels), dtype=torch.float32).unbind()
    _launch(kernels.moments, cut.programs, x_NCS, *shares, cut.rows, cut.slots, cut.runs, cut.shares, **cut.blocks)
    sizes = channels, cut.partials, cut.shares, cut.tiles, cut.tiles * cut.block_rows - cut.rows
    merging = cut.merging | {"WIDTH": cut.block_columns if cut.planes else 1, "BLOCK_ROWS": cut.block_rows}
    _launch(kernels.merge_moments, _ceil_div(channels, merging["HEIGHT"]), *shares, mean, var, *sizes, **merging)
    return mean, var


def transform(
    x_NCS: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
) -> Tensor:
    """See :func:`steadynorm.ops.reference.transform`."""
    _check("transform", x_NCS, {"residual": residual_NCS}, {"center": center, "scale": scale, "shift": shift})
    cut, y_NCS = _cut_for_values(x_NCS), torch.empty_like(x_NCS)
    tensors = x_NCS, *_numbers(center, scale, shift), like(residual_NCS, x_NCS), y_NCS
    _launch(kernels.transform, cut.programs, *tensors, *cut.sizes, ACTIVATION=activation, **cut.blocks)
    return y_NCS


def transform_sums(
    dy_NCS: Tensor,
    x_NCS: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
) -> tuple[Tensor, Tensor]:
    """See :func:`steadynorm.ops.reference.transform_sums`."""
    numbers = {"center": center, "scale": scale, "shift": shift}
    _check("transform_sums", x_NCS, {"dy": dy_NCS, "residual": residual_NCS}, numbers)
    cut, channels = _cut_for_sums(x_NCS), x_NCS.shape[1]
    shares = x_NCS.new_empty((2, channels, cut.partials), dtype=torch.float32).unbind()
    sum_dy, sum_dy_xc = x_NCS.new_empty((2, channels), dtype=torch.float32).unbind()
    tensors = like(dy_NCS, x_NCS), x_NCS, *_numbers(center, scale, shift), like(residual_NCS, x_NCS), *shares
    sizes = cut.rows, cut.slots, cut.runs, cut.per_channel, cut.shares
    _launch(kernels.transform_sums, cut.programs, *tensors, *sizes, ACTIVATION=activation, **cut.blocks)
    merging, sums = cut.merging, (sum_dy, sum_dy_xc)
    _launch(
        kernels.merge_sums, _ceil_div(channels, merging["HEIGHT"]), *shares, *sums, channels, cut.partials, **merging
    )
    return sum_dy, sum_dy_xc


def transform_grad(
    dy_NCS: Tensor,
    x_NCS: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
    a: Tensor,
    b: Tensor,
    c: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """See :func:`steadynorm.ops.reference.transform_grad`."""
    numbers = {"center": center, "scale": scale, "shift": shift, "a": a, "b": b, "c": c}
    _check("transform_grad", x_NCS, {"dy": dy_NCS, "residual": residual_NCS}, numbers)
    cut, dx_NCS = _cut_for_values(x_NCS), torch.empty_like(x_NCS)
    d_residual_NCS = None if residual_NCS is None else torch.empty_like(x_NCS)
    inputs = like(dy_NCS, x_NCS), x_NCS, *_numbers(center, scale, shift), like(residual_NCS, x_NCS)
    tensors = *inputs, *_numbers(a, b, c), dx_NCS, d_residual_NCS
    _launch(kernels.transform_grad, cut.programs, *tensors, *cut.sizes, ACTIVATION=activation, **cut.blocks)
    return dx_NCS, d_residual_NCS


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """The tiling of a tensor for the kernels that sum it, in the terms of ``_triton_kernels``."""

    rows: int
    slots: int
    runs: int
    per_channel: int
    shares: int
    tiles: int
    programs: int
    planes: bool
    block_rows: int
    block_columns: int

    @property
    def partials(self) -> int:
        return self.per_channel * self.shares

    @property
    def blocks(self) -> dict[str, Any]:
        return {"PLANES": self.planes, "BLOCK_ROWS": self.block_rows, "BLOCK_COLUMNS": self.block_columns}

    @property
    def merging(self) -> dict[str, int]:
        length = _power_of_two(self.partials)
        return {"HEIGHT": max(1, MERGED // length), "LENGTH": length, "num_warps": max(2, min(WARPS, length // 128))}


@dataclass(frozen=True, kw_only=True)
class _Values:
    """The tiling of a tensor for the kernels that transform it, in the terms of ``_triton_kernels``."""

    rows: int
    columns: int
    across: int
    per_channel: int
    channels: int
    in_runs: bool
    steps: int
    block_rows: int
    block_columns: int

    @property
    def programs(self) -> int:
        return self.across * _ceil_div(self.rows, self.steps * self.block_rows)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.rows, self.columns, self.across, self.per_channel, self.channels

    @property
    def blocks(self) -> dict[str, Any]:
        runs = {"RUNS": self.in_runs, "STEPS": self.steps}
        return runs | {"BLOCK_ROWS": self.block_rows, "BLOCK_COLUMNS": self.block_columns}


def _cut_for_sums(x: Tensor) -> _Sums:
    images, channels, space = x.shape[0], x.shape[1], x.shape[2:].numel()
    tile = SUMS_BYTES // x.element_size()
    planes = not _is_rows(x) and not (space < SHORT_PLANE and images >= MANY_IMAGES)
    if planes:
        width = math.gcd(space, RUN)
        rows, slots, per_channel, across = images * space // width, channels, 1, channels
        height = min(_power_of_two(rows), tile // width)
    else:
        width = RUN
        rows, slots, per_channel = _as_matrix(x)
        height, width = _block(rows, slots, tile)
        across = _ceil_div(slots, width)
    tiles = _ceil_div(rows, height)
    shares = max(1, min(_shares(across, _programs_at_once(x.device)), tiles, MOST_PARTIALS // per_channel))
    return _Sums(
        rows=rows,
        slots=slots,
        runs=space // width if planes else 1,
        per_channel=per_channel,
        shares=shares,
        tiles=tiles,
        programs=across * shares,
        planes=planes,
        block_rows=height,
        block_columns=width,
    )


def _cut_for_values(x: Tensor) -> _Values:
    space, tile = x.shape[2:].numel(), VALUES_BYTES // x.element_size()
    in_runs = not _is_rows(x) and space % RUN == 0
    if in_runs:
        rows, columns, per_channel = x.numel() // RUN, RUN, space // RUN
        height, width = min(_power_of_two(rows), tile // RUN), RUN
    else:
        rows, columns, per_channel = _as_matrix(x)
        height, width = _block(rows, columns, tile)
    return _Values(
        rows=rows,
        columns=columns,
        across=_ceil_div(columns, width),
        per_channel=per_channel,
        channels=x.shape[1],
        in_runs=in_runs,
        steps=1 if in_runs or per_channel == 1 else min(STEPS, _ceil_div(rows, height)),
        block_rows=height,
        block_columns=width,
    )


def _as_matrix(x: Tensor) -> tuple[int, int, int]:
    """Return rows and columns of the tensor in memory order, and the number of columns per channel."""
    images, channels, space = x.shape[0], x.shape[1], x.shape[2:].numel()
    return (images * space, channels, 1) if _is_rows(x) else (images, channels * space, space)


def _block(rows: int, columns: int, size: int) -> tuple[int, int]:
    """Choose height and width of a tile: wide, unless that wastes over a quarter of it; wider if rows are few."""
    fitting = (width for width in WIDTHS if 3 * width * _ceil_div(columns, width) <= 4 * columns)
    narrow = min(_power_of_two(columns), next(fitting, WIDTHS[-1]))
    height = min(_power_of_two(rows), size // narrow)
    return height, min(_power_of_two(columns), size // height)


def _shares(across: int, at_once: int) -> int:
    """Return programs per slot, for the fewest waves, up to four, that leave at most a tenth of the GPU idle."""

    def full(waves: int) -> float:
        return waves * at_once // across * across / (waves * at_once)

    return max(range(1, 5), key=lambda waves: min(full(waves), 0.9)) * at_once // across


def _programs_at_once(device: torch.device) -> int:
    """Return how many programs of the summing kernels the registers hold at once; three in the interpreter."""
    return 3 * (1 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count)


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least the number."""
    return 1 << (number - 1).bit_length()


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _is_rows(x: Tensor) -> bool:
    """Whether the channels of a position are adjacent in memory; a single channel counts as planes."""
    return x.shape[1] > 1 and x.movedim(1, -1).is_contiguous()


def _numbers(*tensors: Tensor) -> list[Tensor]:
    return [tensor.contiguous().resolve_neg() for tensor in tensors]


def _launch(kernel: Any, programs: int, *arguments: Any, num_warps: int = WARPS, **blocks: Any) -> None:  # noqa: ANN401
    """Launch a Triton kernel on the device of its first argument."""
    with torch.cuda.device(arguments[0].get_device()):
        kernel[programs,](*arguments, **blocks, num_warps=num_warps, enable_fp_fusion=True)

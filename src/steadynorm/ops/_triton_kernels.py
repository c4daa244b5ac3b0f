"""The GPU kernels: tiles of values in registers, each read from memory once. ``_triton.py`` tiles and launches them.

A tile is a piece of a matrix, BLOCK_ROWS × BLOCK_COLUMNS, and is placed in one of three ways:

- as columns: the tensor is a matrix (rows, columns) as it lies in memory, (N·S, C) for channels-last and (N, C·S)
  for contiguous; the channel of a column is column // per_channel;
- as planes (sums): a tile belongs to one channel; its rows are runs of BLOCK_COLUMNS neighbours, which divide S;
- as runs (values): the tensor is read as it lies, in such runs, and every run has one channel.

Rows and runs have 32-bit indices, whose divisions are fast; columns and memory offsets have 64 bits. Triton makes an
integer argument of 1 a constant, which has no ``to``.
"""

from collections.abc import Callable
from typing import Any

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from steadynorm.ops.reference import LEAKY_SLOPE

__all__ = ["merge_moments", "merge_sums", "moments", "transform", "transform_grad", "transform_sums"]

jit: Callable[[Callable[..., Any]], Any] = triton.jit
SLOPE = tl.constexpr(LEAKY_SLOPE)


@jit
def _activate(pre: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """Apply the activation, as torch does at 0 and NaN."""
    result = pre
    if ACTIVATION == "relu":
        result = tl.where(pre <= 0, 0.0, pre)
    if ACTIVATION == "leaky_relu":
        result = tl.where(pre > 0, pre, pre * SLOPE)
    if ACTIVATION == "silu":
        result = pre / (1 + tl.exp(-pre))
    return result


@jit
def _activation_backward(dy: tl.tensor, pre: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
    """Compute dy·activation′(pre)."""
    result = dy
    if ACTIVATION == "relu":
        result = tl.where(pre <= 0, 0.0, dy)
    if ACTIVATION == "leaky_relu":
        result = tl.where(pre > 0, dy, dy * SLOPE)
    if ACTIVATION == "silu":
        sigmoid = 1 / (1 + tl.exp(-pre))
        result = dy * sigmoid * (1 + pre * (1 - sigmoid))
    return result


@jit
def _read(pointer: tl.tensor, offsets: tl.tensor, inside: tl.tensor, EVICT: tl.constexpr) -> tl.tensor:
    return tl.load(pointer + offsets, mask=inside, other=0.0, eviction_policy=EVICT).to(tl.float32)


@jit
def _three(
    one: tl.tensor, two: tl.tensor, three: tl.tensor, channel: tl.tensor, channels: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Load three numbers of each channel; 0 beyond the last."""
    exists = channel < channels
    first = tl.load(one + channel, mask=exists, other=0.0)
    second = tl.load(two + channel, mask=exists, other=0.0)
    return first, second, tl.load(three + channel, mask=exists, other=0.0)


@jit
def _total(tile: tl.tensor, PLANES: tl.constexpr) -> tl.tensor:
    """Sum a tile, shape (1, 1), or each of its columns, shape (1, BLOCK_COLUMNS)."""
    result = tl.sum(tile, 0, keep_dims=True)
    if PLANES:
        result = tl.sum(result, 1, keep_dims=True)
    return result


@jit
def _cut(first: tl.tensor, divisor: tl.tensor, LENGTH: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Divide first … first + LENGTH − 1, all but the first in 32 bits.

    Returns a base quotient, what to add to it for each number, and the remainders.
    """
    quotient = first // divisor
    beyond = (first - quotient * divisor).to(tl.int32) + tl.arange(0, LENGTH)
    more = beyond // divisor
    return quotient, more, beyond - more * divisor


@jit
def _slots(block: tl.tensor, PLANES: tl.constexpr, BLOCK_COLUMNS: tl.constexpr) -> tl.tensor:
    """Return the slots that a program sums: one channel, shape (1, 1), or columns, shape (1, BLOCK_COLUMNS)."""
    slot = tl.full([1, 1], 0, tl.int64) + block
    if not PLANES:
        slot = slot * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    return slot


@jit
def _tile(
    first: tl.tensor,
    slot: tl.tensor,
    rows: tl.tensor,
    slots: tl.tensor,
    runs: tl.tensor,
    PLANES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the memory offsets of the tile that starts at row ``first``, and the mask of its values."""
    row = (first + tl.arange(0, BLOCK_ROWS))[:, None]
    if PLANES:
        image, more, run = _cut(first, runs, BLOCK_ROWS)
        plane = (image + more).to(tl.int64)[:, None] * slots + slot
        offsets = (plane * runs + run[:, None]) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)[None, :]
    else:
        offsets = row.to(tl.int64) * slots + slot
    return offsets, (row < rows) & (slot < slots)


@jit
def moments(
    x: tl.tensor,  # the input, N·C·S values
    center: tl.tensor,  # out: near the mean of a share, shape (slots, shares)
    total: tl.tensor,  # out: Σ(x − center) of a share, shape (slots, shares)
    squares: tl.tensor,  # out: Σ(x − center)² of a share, shape (slots, shares)
    rows: tl.tensor,  # rows of the matrix; runs of a channel, N·S / BLOCK_COLUMNS, in planes
    slots: tl.tensor,  # columns; channels in planes
    runs: tl.tensor,  # runs of one plane, S / BLOCK_COLUMNS
    shares: tl.tensor,  # programs over which the tiles of a slot are distributed
    PLANES: tl.constexpr,  # how tiles are placed
    BLOCK_ROWS: tl.constexpr,  # height of a tile
    BLOCK_COLUMNS: tl.constexpr,  # width of a tile
) -> None:
    """Measure the share of one program about the mean of its first tile.

    That tile is 1/T of the share, so the variance is at least its squared distance from the mean / T: for any data,
    cancellation loses at most a factor T.
    """
    blocks = tl.num_programs(0) // shares
    share = tl.program_id(0) // blocks
    slot = _slots(tl.program_id(0) % blocks, PLANES, BLOCK_COLUMNS)
    first = share * BLOCK_ROWS
    step = shares * BLOCK_ROWS

    offsets, inside = _tile(first, slot, rows, slots, runs, PLANES, BLOCK_ROWS, BLOCK_COLUMNS)
    values = _read(x, offsets, inside, "")
    count = tl.minimum(rows - first, BLOCK_ROWS) * (BLOCK_COLUMNS if PLANES else 1)
    middle = _total(values, PLANES) / count.to(tl.float32)
    sums = tl.where(inside, values - middle, 0.0)
    sums_of_squares = sums * sums
    for row in tl.range(first + step, rows, step, num_stages=4):
        here, there = _tile(row, slot, rows, slots, runs, PLANES, BLOCK_ROWS, BLOCK_COLUMNS)
        difference = tl.where(there, _read(x, here, there, "") - middle, 0.0)
        sums += difference
        sums_of_squares += difference * difference

    place = slot * shares + share
    tl.store(center + place, middle, mask=slot < slots)
    tl.store(total + place, _total(sums, PLANES), mask=slot < slots)
    tl.store(squares + place, _total(sums_of_squares, PLANES), mask=slot < slots)


@jit
def _partials(
    channels: tl.tensor, partials: tl.tensor, HEIGHT: tl.constexpr, LENGTH: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Return the channels that a program merges, shape (HEIGHT,); their partials, (1, LENGTH); offsets and mask."""
    channel = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    i = tl.arange(0, LENGTH)[None, :]
    place = channel.to(tl.int64)[:, None] * partials + i
    return channel, i, place, (channel < channels)[:, None] & (i < partials)


@jit
def _read_double(pointer: tl.tensor, place: tl.tensor, exists: tl.tensor) -> tl.tensor:
    return tl.load(pointer + place, mask=exists, other=0.0).to(tl.float64)


@jit
def merge_moments(
    center: tl.tensor,  # from ``moments``, shape (C, partials)
    total: tl.tensor,  # from ``moments``, shape (C, partials)
    squares: tl.tensor,  # from ``moments``, shape (C, partials)
    mean: tl.tensor,  # out: shape (C,)
    var: tl.tensor,  # out: shape (C,)
    channels: tl.tensor,  # C
    partials: tl.tensor,  # numbers per channel: slots per channel times shares
    shares: tl.tensor,  # as in ``moments``
    tiles: tl.tensor,  # tiles of a slot, all shares together
    missing: tl.tensor,  # rows that the last tile lacks
    WIDTH: tl.constexpr,  # values of a slot in a row: BLOCK_COLUMNS in planes, else 1
    BLOCK_ROWS: tl.constexpr,  # as in ``moments``
    HEIGHT: tl.constexpr,  # channels per program
    LENGTH: tl.constexpr,  # a power of two, at least partials
) -> None:
    """Merge the shares of each channel by Chan's formula, in float64: their means may be equal in float32."""
    channel, i, place, exists = _partials(channels, partials, HEIGHT, LENGTH)
    share = (i % shares).to(tl.int64)
    height = ((tiles - 1 - share) // shares + 1) * BLOCK_ROWS
    height -= tl.where((tiles - 1) % shares == share, missing, 0)
    count = tl.where(i < partials, (height * WIDTH).to(tl.float64), 0.0)
    whole = tl.sum(count, 1)
    sums = _read_double(total, place, exists)
    offset = sums / tl.where(i < partials, count, 1.0)
    middle = _read_double(center, place, exists) + offset
    average = tl.sum(count * middle, 1) / whole
    distance = middle - average[:, None]
    within = _read_double(squares, place, exists) - sums * offset
    spread = tl.sum(within + count * distance * distance, 1) / whole
    tl.store(mean + channel, average.to(tl.float32), mask=channel < channels)
    tl.store(var + channel, tl.where(spread < 0, 0.0, spread).to(tl.float32), mask=channel < channels)


@jit
def transform_sums(
    dy: tl.tensor,  # gradient of y, as x
    x: tl.tensor,  # the input, N·C·S values
    center: tl.tensor,  # shape (C,)
    scale: tl.tensor,  # shape (C,)
    shift: tl.tensor,  # shape (C,)
    residual: tl.tensor,  # as x, or None
    sum_dy: tl.tensor,  # out: Σdy′ of a share, shape (slots, shares)
    sum_dy_xc: tl.tensor,  # out: Σdy′·(x − center) of a share, shape (slots, shares)
    rows: tl.tensor,  # as in ``moments``
    slots: tl.tensor,  # as in ``moments``
    runs: tl.tensor,  # as in ``moments``
    per_channel: tl.tensor,  # slots of a channel
    shares: tl.tensor,  # as in ``moments``
    ACTIVATION: tl.constexpr,  # its name, or None
    PLANES: tl.constexpr,  # as in ``moments``
    BLOCK_ROWS: tl.constexpr,  # as in ``moments``
    BLOCK_COLUMNS: tl.constexpr,  # as in ``moments``
) -> None:
    """Sum the share of one program."""
    blocks = tl.num_programs(0) // shares
    share = tl.program_id(0) // blocks
    slot = _slots(tl.program_id(0) % blocks, PLANES, BLOCK_COLUMNS)
    middle, factor, offset = _three(center, scale, shift, slot // per_channel, slots // per_channel)
    first = tl.full([BLOCK_ROWS, BLOCK_COLUMNS], 0, tl.float32)
    second = tl.full([BLOCK_ROWS, BLOCK_COLUMNS], 0, tl.float32)
    step = shares * BLOCK_ROWS
    for row in tl.range(share * BLOCK_ROWS, rows, step, num_stages=4):
        here, inside = _tile(row, slot, rows, slots, runs, PLANES, BLOCK_ROWS, BLOCK_COLUMNS)
        xc = _read(x, here, inside, "") - middle
        pre = xc * factor + offset
        if residual is not None:
            pre += _read(residual, here, inside, "")
        dpre = tl.where(inside, _activation_backward(_read(dy, here, inside, ""), pre, ACTIVATION), 0.0)
        first += dpre
        second += dpre * xc
    place = slot * shares + share
    tl.store(sum_dy + place, _total(first, PLANES), mask=slot < slots)
    tl.store(sum_dy_xc + place, _total(second, PLANES), mask=slot < slots)


@jit
def merge_sums(
    first: tl.tensor,  # sums of the shares, shape (C, partials)
    second: tl.tensor,  # sums of the shares, shape (C, partials)
    sum_dy: tl.tensor,  # out: shape (C,)
    sum_dy_xc: tl.tensor,  # out: shape (C,)
    channels: tl.tensor,  # C
    partials: tl.tensor,  # numbers per channel: slots per channel times shares
    HEIGHT: tl.constexpr,  # channels per program
    LENGTH: tl.constexpr,  # a power of two, at least partials
) -> None:
    """Add the shares of each channel, in float64."""
    channel, _, place, exists = _partials(channels, partials, HEIGHT, LENGTH)
    total = tl.sum(_read_double(first, place, exists), 1).to(tl.float32)
    tl.store(sum_dy + channel, total, mask=channel < channels)
    total_xc = tl.sum(_read_double(second, place, exists), 1).to(tl.float32)
    tl.store(sum_dy_xc + channel, total_xc, mask=channel < channels)


@jit
def _place(
    blocks: tl.tensor,
    per_channel: tl.tensor,
    channels: tl.tensor,
    RUNS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return a program's first row, its columns and the channels, shape (rows, 1) in runs, else (1, columns)."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)  # from the end, which was summed last
    first = program // blocks * (STEPS * BLOCK_ROWS)
    start = (program % blocks).to(tl.int64) * BLOCK_COLUMNS
    if RUNS:
        plane, more, _ = _cut(first, per_channel, BLOCK_ROWS)
        channel = ((plane % channels + more) % channels)[:, None]
    else:
        nearest, more, _ = _cut(start, per_channel, BLOCK_COLUMNS)
        channel = (nearest + more)[None, :]
    return first, (start + tl.arange(0, BLOCK_COLUMNS))[None, :], channel


@jit
def transform(
    x: tl.tensor,  # the input, N·C·S values
    center: tl.tensor,  # shape (C,)
    scale: tl.tensor,  # shape (C,)
    shift: tl.tensor,  # shape (C,)
    residual: tl.tensor,  # as x, or None
    y: tl.tensor,  # out: as x
    rows: tl.tensor,  # rows of the matrix
    columns: tl.tensor,  # its columns; BLOCK_COLUMNS in runs
    blocks: tl.tensor,  # tiles side by side in a row
    per_channel: tl.tensor,  # columns of a channel; rows of a plane in runs
    channels: tl.tensor,  # C
    ACTIVATION: tl.constexpr,  # its name, or None
    RUNS: tl.constexpr,  # how tiles are placed
    STEPS: tl.constexpr,  # tiles of a program, one below the other; 1 in runs
    BLOCK_ROWS: tl.constexpr,  # height of a tile
    BLOCK_COLUMNS: tl.constexpr,  # width of a tile
) -> None:
    """Compute a few tiles of y = activation((x − center)·scale + shift + residual)."""
    first, column, channel = _place(blocks, per_channel, channels, RUNS, STEPS, BLOCK_ROWS, BLOCK_COLUMNS)
    middle, factor, offset = _three(center, scale, shift, channel, channels)
    for i in tl.static_range(STEPS):
        row = (first + i * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
        place, inside = row.to(tl.int64) * columns + column, (row < rows) & (column < columns)
        pre = (_read(x, place, inside, "evict_first") - middle) * factor + offset
        if residual is not None:
            pre += _read(residual, place, inside, "evict_first")
        tl.store(y + place, _activate(pre, ACTIVATION), mask=inside)


@jit
def transform_grad(
    dy: tl.tensor,  # gradient of y, as x
    x: tl.tensor,  # the input, N·C·S values
    center: tl.tensor,  # shape (C,)
    scale: tl.tensor,  # shape (C,)
    shift: tl.tensor,  # shape (C,)
    residual: tl.tensor,  # as x, or None
    a: tl.tensor,  # shape (C,)
    b: tl.tensor,  # shape (C,)
    c: tl.tensor,  # shape (C,)
    dx: tl.tensor,  # out: as x
    d_residual: tl.tensor,  # out: as x, or None
    rows: tl.tensor,  # as in ``transform``
    columns: tl.tensor,  # as in ``transform``
    blocks: tl.tensor,  # as in ``transform``
    per_channel: tl.tensor,  # as in ``transform``
    channels: tl.tensor,  # C
    ACTIVATION: tl.constexpr,  # its name, or None
    RUNS: tl.constexpr,  # as in ``transform``
    STEPS: tl.constexpr,  # as in ``transform``
    BLOCK_ROWS: tl.constexpr,  # as in ``transform``
    BLOCK_COLUMNS: tl.constexpr,  # as in ``transform``
) -> None:
    """Compute a few tiles of dx = a·dy′ + b·(x − center) + c and of d_residual = dy′."""
    first, column, channel = _place(blocks, per_channel, channels, RUNS, STEPS, BLOCK_ROWS, BLOCK_COLUMNS)
    middle, factor, offset = _three(center, scale, shift, channel, channels)
    slope_dy, slope_xc, constant = _three(a, b, c, channel, channels)
    for i in tl.static_range(STEPS):
        row = (first + i * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
        place, inside = row.to(tl.int64) * columns + column, (row < rows) & (column < columns)
        xc = _read(x, place, inside, "evict_first") - middle
        pre = xc * factor + offset
        if residual is not None:
            pre += _read(residual, place, inside, "evict_first")
        dpre = _activation_backward(_read(dy, place, inside, "evict_first"), pre, ACTIVATION)
        if d_residual is not None:
            tl.store(d_residual + place, dpre, mask=inside)
        tl.store(dx + place, slope_dy * dpre + slope_xc * xc + constant, mask=inside)

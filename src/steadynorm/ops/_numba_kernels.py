"""The kernels over flat memory, compiled by Numba; ``_numba.py`` turns tensors into it.

Memory is lines of numbers, read one behind the other, sixteen at a time. Threads share out the lines. Sums are
float32 over runs of at most ``RUN`` numbers per lane, joined in float64; which numbers a run has depends on shape and
thread count alone, so that the same input gives the same bits.

Numba compiles a version per type of the arguments, so what the code depends on is told by a type: the layout, the
activation, an absent residual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from steadynorm.ops._lanes import (
    LANES,
    drain,
    fill,
    keep,
    load,
    load_some,
    store,
    store_some,
    stream,
    total,
)
from steadynorm.ops._numba_types import (
    Activation,
    Array,
    Float32,
    Identity,
    Memory,
    Type,
    Vector,
    activate,
    array,
    behind,
    choose,
    choose_inline,
    compiled,
    inline,
    parallel,
)

__all__ = ["Layout", "Planes", "Rows", "grad", "moments", "sums", "transform"]

RUN = 64
"""Numbers that a lane sums in float32 before the sum goes to float64."""
GROUP = 4
"""Short rows that are computed side by side, so that their columns' numbers are read and their sums written once."""
SHORT = 128
"""Bytes of a row up to which that is faster; beyond, memory is read fastest in one stream."""
SAMPLES = 16
"""Rows, spread over all, that tell about where the means are."""


class Rows(NamedTuple):
    """A line is a position, its columns are the channels (channels-last)."""

    channels: int
    columns: int


class Planes(NamedTuple):
    """A line is a plane of one channel; the channels take turns (contiguous)."""

    channels: int
    columns: int


Layout = Rows | Planes


class Transform(NamedTuple):
    """What ``transform`` reads and writes; tensors are flat."""

    x: Array
    residual: Array | None
    numbers: Array  # center, scale and shift of every channel: float32, 3·C
    y: Array  # written


class Sums(NamedTuple):
    """What ``sums`` reads."""

    dy: Array | None  # None: x − center takes its place, whose sums are the moments
    x: Array
    residual: Array | None
    numbers: Array  # as above


class Grad(NamedTuple):
    """What ``grad`` reads and writes."""

    dy: Array
    x: Array
    residual: Array | None
    numbers: Array  # center, scale, shift, a, b and c of every channel: float32, 6·C
    dx: Array  # written
    d_residual: Array | None  # written, None without a residual


Task = Transform | Sums | Grad


@inline
def _read(numbers: Array, at: int, count: int) -> Vector:
    return load(numbers, at) if count == LANES else load_some(numbers, at, count)


@inline
def _put(target: Array, at: int, values: Vector, count: int, streaming: bool) -> None:
    if streaming:
        stream(target, at, values)
    elif count == LANES:
        store(target, at, values)
    else:
        store_some(target, at, values, count)


@inline
def _put_if_wanted(target: Array | None, at: int, values: Vector, count: int, streaming: bool) -> None:
    if target is not None:
        _put(target, at, values, count, streaming)


@inline
def _three_of_columns(numbers: Array, at: int, channels: int, count: int) -> tuple[Vector, Vector, Vector]:
    return _read(numbers, at, count), _read(numbers, at + channels, count), _read(numbers, at + 2 * channels, count)


@inline
def _three_of_channel(numbers: Array, at: int, channels: int) -> tuple[Vector, Vector, Vector]:
    return fill(numbers[at]), fill(numbers[at + channels]), fill(numbers[at + 2 * channels])


def _numbers(task: Task, layout: Layout, channel: int, count: int) -> Vector:
    """Give the numbers of ``count`` channels from one on (rows), or ``count`` times those of one channel (planes)."""
    raise NotImplementedError


@choose_inline(_numbers)
def _numbers_for(task: Type, layout: Type, channel: Type, count: Type) -> Callable[..., Any]:
    if layout.instance_class is Rows:
        if task.instance_class is not Grad:
            return lambda task, layout, channel, count: _three_of_columns(task.numbers, channel, layout.channels, count)
        return lambda task, layout, channel, count: (
            _three_of_columns(task.numbers, channel, layout.channels, count),
            _three_of_columns(task.numbers, 3 * layout.channels + channel, layout.channels, count),
        )
    if task.instance_class is not Grad:
        return lambda task, layout, channel, count: _three_of_channel(task.numbers, channel, layout.channels)
    return lambda task, layout, channel, count: (
        _three_of_channel(task.numbers, channel, layout.channels),
        _three_of_channel(task.numbers, 3 * layout.channels + channel, layout.channels),
    )


@inline
def _pre(xc: Vector, scale: Vector, shift: Vector, residual: Array | None, at: int, count: int) -> Vector:
    """(x − center)·scale + shift + residual."""
    pre = xc * scale + shift
    if residual is not None:
        pre += _read(residual, at, count)
    return pre


def _write_some(task: Task, activation: Activation, numbers: Vector, at: int, count: int, streaming: bool) -> None:
    """Compute and write ``count`` results."""
    raise NotImplementedError


@choose_inline(_write_some)
def _write_some_for(
    task: Type, activation: Type, numbers: Type, at: Type, count: Type, streaming: Type
) -> Callable[..., None]:
    return _transform_some if task.instance_class is Transform else _grad_some


def _transform_some(
    task: Transform, activation: Activation, numbers: Vector, at: int, count: int, streaming: bool
) -> None:
    center, scale, shift = numbers
    pre = _pre(_read(task.x, at, count) - center, scale, shift, task.residual, at, count)
    _put(task.y, at, activate(activation, pre), count, streaming)


def _grad_some(task: Grad, activation: Activation, numbers: Vector, at: int, count: int, streaming: bool) -> None:
    (center, scale, shift), (a, b, c) = numbers
    xc = _read(task.x, at, count) - center
    pre = _pre(xc, scale, shift, task.residual, at, count)
    dpre = behind(activation, _read(task.dy, at, count), pre)
    _put_if_wanted(task.d_residual, at, dpre, count, streaming)
    _put(task.dx, at, a * dpre + (b * xc + c), count, streaming)


@inline
def _write_columns(
    task: Task, activation: Activation, layout: Layout, line: int, lines: int, column: int, count: int, streaming: bool
) -> None:
    """Write some columns of a few rows, whose numbers are read once."""
    numbers = _numbers(task, layout, column, count)
    for k in range(lines):
        _write_some(task, activation, numbers, (line + k) * layout.columns + column, count, streaming)


@inline
def _write_group(task: Task, activation: Activation, layout: Layout, line: int, lines: int, streaming: bool) -> None:
    rest = layout.columns % LANES
    for column in range(0, layout.columns - rest, LANES):
        _write_columns(task, activation, layout, line, lines, column, LANES, streaming)
    if rest:
        _write_columns(task, activation, layout, line, lines, layout.columns - rest, rest, False)


@inline
def _ungrouped(x: Array, layout: Layout, first: int, last: int) -> int:
    """Give the first of the rows that are computed one by one."""
    if layout.columns * x.itemsize > SHORT:
        return first
    return last - (last - first) % GROUP


def _write_rows(task: Task, activation: Activation, layout: Layout, first: int, last: int, streaming: bool) -> None:
    ungrouped = _ungrouped(task.x, layout, first, last)
    for line in range(first, ungrouped, GROUP):
        _write_group(task, activation, layout, line, GROUP, streaming)
    for line in range(ungrouped, last):
        _write_group(task, activation, layout, line, 1, streaming)


@inline
def _next(channel: int, layout: Layout) -> int:
    """Give the channel of the plane behind; a division for each would take as long as a short plane."""
    return channel + 1 if channel + 1 < layout.channels else 0


def _write_planes(task: Task, activation: Activation, layout: Layout, first: int, last: int, streaming: bool) -> None:
    rest = layout.columns % LANES
    channel = first % layout.channels
    for line in range(first, last):
        numbers = _numbers(task, layout, channel, LANES)
        channel = _next(channel, layout)
        start = line * layout.columns
        for at in range(start, start + layout.columns - rest, LANES):
            _write_some(task, activation, numbers, at, LANES, streaming)
        if rest:
            _write_some(task, activation, numbers, start + layout.columns - rest, rest, False)


def _write_lines(task: Task, activation: Activation, layout: Layout, first: int, last: int, streaming: bool) -> None:
    """Write the results of some lines."""
    raise NotImplementedError


@choose(_write_lines)
def _write_lines_in(
    task: Type, activation: Type, layout: Type, first: Type, last: Type, streaming: Type
) -> Callable[..., None]:
    return _write_rows if layout.instance_class is Rows else _write_planes


@parallel
def _write(task: Task, activation: Activation, layout: Layout, streaming: bool, blocks: int) -> None:
    lines = task.x.size // layout.columns
    for block in prange(blocks):
        _write_lines(task, activation, layout, block * lines // blocks, (block + 1) * lines // blocks, streaming)
        if streaming:
            drain()


@inline
def _upstream(dy: Array | None, xc: Vector, at: int, count: int) -> Vector:
    return keep(xc, count) if dy is None else _read(dy, at, count)


@inline
def _terms(task: Sums, activation: Activation, numbers: Vector, at: int, count: int) -> tuple[Vector, Vector]:
    """dy′ and dy′·(x − center)."""
    center, scale, shift = numbers
    xc = _read(task.x, at, count) - center
    pre = _pre(xc, scale, shift, task.residual, at, count)
    dpre = behind(activation, _upstream(task.dy, xc, at, count), pre)
    return dpre, dpre * xc


@inline
def _add_columns(
    task: Sums, activation: Activation, layout: Layout, run: Array, line: int, lines: int, column: int, count: int
) -> None:
    """Add some columns of a few rows to the run."""
    numbers = _numbers(task, layout, column, count)
    sum_dy, sum_dy_xc = fill(0.0), fill(0.0)
    for k in range(lines):
        dpre, dpre_xc = _terms(task, activation, numbers, (line + k) * layout.columns + column, count)
        sum_dy += dpre
        sum_dy_xc += dpre_xc
    half = run.size // 2
    store(run, column, load(run, column) + sum_dy)
    store(run, half + column, load(run, half + column) + sum_dy_xc)


@inline
def _add_group(task: Sums, activation: Activation, layout: Layout, run: Array, line: int, lines: int) -> None:
    rest = layout.columns % LANES
    for column in range(0, layout.columns - rest, LANES):
        _add_columns(task, activation, layout, run, line, lines, column, LANES)
    if rest:
        _add_columns(task, activation, layout, run, line, lines, layout.columns - rest, rest)


def _sum_rows(task: Sums, activation: Activation, layout: Layout, totals: Array, first: int, last: int) -> None:
    run = np.empty(totals.size, np.float32)
    for start in range(first, last, RUN):
        stop = min(start + RUN, last)
        for i in range(run.size):
            run[i] = 0
        ungrouped = _ungrouped(task.x, layout, start, stop)
        for line in range(start, ungrouped, GROUP):
            _add_group(task, activation, layout, run, line, GROUP)
        for line in range(ungrouped, stop):
            _add_group(task, activation, layout, run, line, 1)
        for i in range(run.size):
            totals[i] += run[i]


def _sum_planes(task: Sums, activation: Activation, layout: Layout, totals: Array, first: int, last: int) -> None:
    half = totals.size // 2
    channel = first % layout.channels
    for line in range(first, last):
        numbers = _numbers(task, layout, channel, LANES)
        stop = (line + 1) * layout.columns
        for start in range(line * layout.columns, stop, RUN * LANES):
            size = min(RUN * LANES, stop - start)
            sum_dy, sum_dy_xc = fill(0.0), fill(0.0)
            for at in range(start, start + size - LANES + 1, LANES):
                dpre, dpre_xc = _terms(task, activation, numbers, at, LANES)
                sum_dy += dpre
                sum_dy_xc += dpre_xc
            rest = size % LANES
            if rest:
                dpre, dpre_xc = _terms(task, activation, numbers, start + size - rest, rest)
                sum_dy += dpre
                sum_dy_xc += dpre_xc
            totals[channel] += total(sum_dy)
            totals[half + channel] += total(sum_dy_xc)
        channel = _next(channel, layout)


def _sum_lines(task: Sums, activation: Activation, layout: Layout, totals: Array, first: int, last: int) -> None:
    """Add the sums of some lines to totals."""
    raise NotImplementedError


@choose(_sum_lines)
def _sum_lines_in(
    task: Type, activation: Type, layout: Type, totals: Type, first: Type, last: Type
) -> Callable[..., None]:
    return _sum_rows if layout.instance_class is Rows else _sum_planes


@parallel
def _partial_sums(task: Sums, activation: Activation, layout: Layout, blocks: int) -> Array:
    lines = task.x.size // layout.columns
    width = (layout.channels + LANES - 1) // LANES * LANES
    totals = np.zeros((blocks, 2 * width))
    for block in prange(blocks):
        _sum_lines(task, activation, layout, totals[block], block * lines // blocks, (block + 1) * lines // blocks)
    return totals


@compiled
def _total_sums(task: Sums, activation: Activation, layout: Layout, blocks: int) -> Array:
    """Sum dy′ and dy′·(x − center) per channel: float64, shape (2, C or a little more)."""
    totals = _partial_sums(task, activation, layout, blocks)
    result = totals[0]
    for block in range(1, blocks):
        for i in range(result.size):
            result[i] += totals[block, i]
    both: Array = result.reshape(2, result.size // 2)
    return both


@compiled
def _sample_rows(x: Array, layout: Layout, guess: Array) -> None:
    lines = x.size // layout.columns
    picked = min(SAMPLES, lines)
    for column in range(0, layout.columns, LANES):
        count = min(LANES, layout.columns - column)
        values = fill(0.0)
        for k in range(picked):
            values += _read(x, k * lines // picked * layout.columns + column, count)
        _put(guess, column, values * fill(1.0 / picked), count, False)


@compiled
def _sample_planes(x: Array, layout: Layout, guess: Array) -> None:
    count = min(LANES, layout.columns)
    middle = (layout.columns - count) // 2
    halfway = x.size // layout.columns // layout.channels // 2 * layout.channels
    for channel in range(layout.channels):
        values = _read(x, channel * layout.columns + middle, count)
        values += _read(x, (halfway + channel) * layout.columns + middle, count)
        guess[channel] = total(values) / np.float32(2 * count)


def _sample(x: Array, layout: Layout, guess: Array) -> None:
    """Guess each channel's mean from a few positions; what is summed about it stays small."""
    raise NotImplementedError


@choose(_sample)
def _sample_in(x: Type, layout: Type, guess: Type) -> Callable[..., None]:
    part = _sample_rows if layout.instance_class is Rows else _sample_planes
    return lambda x, layout, guess: part(x, layout, guess)


@compiled
def _moments(x: Array, layout: Layout, mean: Array, var: Array, blocks: int) -> None:
    count = x.size // layout.channels
    center = np.zeros(3 * layout.channels, np.float32)  # scale and shift are not looked at
    _sample(x, layout, center)
    for channel in range(layout.channels):
        if not np.isfinite(center[channel]):
            center[channel] = 0
    for _ in range(2):
        totals = _total_sums(Sums(None, x, None, center), Identity(), layout, blocks)
        far = False
        for channel in range(layout.channels):
            first = totals[0, channel] / count
            second = totals[1, channel] / count - first * first
            mean[channel] = center[channel] + first
            var[channel] = 0.0 if second < 0.0 else second  # NaN stays NaN
            far |= first * first > second
        if not far:
            break
        # Far from it the squares have lost digits: once more, about the mean itself.
        for channel in range(layout.channels):
            center[channel] = mean[channel]


@compiled
def moments(
    x: Memory,  # the input
    size: int,  # how many numbers it has
    layout: Layout,
    mean: Float32,  # shape (C,); written
    var: Float32,  # likewise
    blocks: int,  # parts that the threads share
) -> None:
    """Write Σx/count and Σ(x − mean)²/count per channel."""
    channels = layout.channels
    _moments(array(x, size), layout, array(mean, channels), array(var, channels), blocks)


@compiled
def transform(
    x: Memory,
    size: int,
    layout: Layout,
    numbers: Float32,  # center, scale and shift of every channel, shape (3, C)
    residual: Memory | None,  # as x
    activation: Activation,
    y: Memory,  # as x; written
    streaming: bool,  # whether to write past the caches: only where lines end where a cache's do
    blocks: int,
) -> None:
    """Write y = activation((x − center)·scale + shift + residual)."""
    task = Transform(array(x, size), array(residual, size), array(numbers, 3 * layout.channels), array(y, size))
    _write(task, activation, layout, streaming, blocks)


@compiled
def sums(
    dy: Memory,  # as x
    x: Memory,
    size: int,
    layout: Layout,
    numbers: Float32,
    residual: Memory | None,
    activation: Activation,
    sum_dy: Float32,  # shape (C,); written
    sum_dy_xc: Float32,  # likewise
    blocks: int,
) -> None:
    """Write Σdy′ and Σdy′·(x − center) per channel."""
    channels = layout.channels
    task = Sums(array(dy, size), array(x, size), array(residual, size), array(numbers, 3 * channels))
    totals = _total_sums(task, activation, layout, blocks)
    first, second = array(sum_dy, channels), array(sum_dy_xc, channels)
    for channel in range(channels):
        first[channel], second[channel] = totals[0, channel], totals[1, channel]


@compiled
def grad(
    dy: Memory,
    x: Memory,
    size: int,
    layout: Layout,
    numbers: Float32,  # center, scale, shift, a, b and c of every channel, shape (6, C)
    residual: Memory | None,
    activation: Activation,
    dx: Memory,  # as x; written
    d_residual: Memory | None,  # as x, None without a residual; written
    streaming: bool,
    blocks: int,
) -> None:
    """Write dx = a·dy′ + b·(x − center) + c and d_residual = dy′."""
    inputs = array(dy, size), array(x, size), array(residual, size), array(numbers, 6 * layout.channels)
    task = Grad(inputs[0], inputs[1], inputs[2], inputs[3], array(dx, size), array(d_residual, size))
    _write(task, activation, layout, streaming, blocks)

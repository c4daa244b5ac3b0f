"""The compiled transform and its gradient, each in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from numba import prange

from steadynorm.ops._numba_layout import (
    GROUP,
    Layout,
    Rows,
    next_channel,
    pre_activation,
    put,
    read,
    steps,
    three_numbers,
)
from steadynorm.ops._numba_simd import LANES, drain
from steadynorm.ops._numba_types import (
    Activation,
    Array,
    Type,
    Vector,
    activate,
    activation_backward,
    choose,
    choose_inline,
    inline,
    parallel,
)

__all__ = ["Grad", "Transform", "write"]


class Transform(NamedTuple):
    """The inputs and the result of ``transform``; tensors are flat."""

    x: Array
    residual: Array | None
    numbers: Array  # center, scale and shift of every channel: float32, 3·C
    y: Array  # written


class Grad(NamedTuple):
    """The inputs and the results of ``grad``; tensors are flat."""

    dy: Array
    x: Array
    residual: Array | None
    numbers: Array  # center, scale, shift, a, b and c of every channel: float32, 6·C
    dx: Array  # written
    d_residual: Array | None  # written, None without a residual


Task = Transform | Grad


@inline
def _put_if_wanted(target: Array | None, at: int, values: Vector, count: int, streaming: bool) -> None:
    if target is not None:
        put(target, at, values, count, streaming)


def _numbers(task: Task, layout: Layout, channel: int, count: int) -> Vector:
    """Return the task's numbers for ``count`` channels (rows), or those of one channel, repeated (planes)."""
    raise NotImplementedError


@choose_inline(_numbers)
def _numbers_for(task: Type, layout: Type, channel: Type, count: Type) -> Callable[..., Any]:
    if task.instance_class is Transform:
        return lambda task, layout, channel, count: three_numbers(task.numbers, channel, layout, count)
    return lambda task, layout, channel, count: (
        three_numbers(task.numbers, channel, layout, count),
        three_numbers(task.numbers, 3 * layout.channels + channel, layout, count),
    )


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
    pre = pre_activation(read(task.x, at, count) - center, scale, shift, task.residual, at, count)
    put(task.y, at, activate(activation, pre), count, streaming)


def _grad_some(task: Grad, activation: Activation, numbers: Vector, at: int, count: int, streaming: bool) -> None:
    (center, scale, shift), (a, b, c) = numbers
    xc = read(task.x, at, count) - center
    pre = pre_activation(xc, scale, shift, task.residual, at, count)
    dpre = activation_backward(activation, read(task.dy, at, count), pre)
    _put_if_wanted(task.d_residual, at, dpre, count, streaming)
    put(task.dx, at, a * dpre + (b * xc + c), count, streaming)


@inline
def _write_columns(
    task: Task,
    activation: Activation,
    layout: Layout,
    line: int,
    lines: int,
    apart: int,
    column: int,
    count: int,
    streaming: bool,
) -> None:
    """Write ``count`` columns of ``lines`` rows; the numbers per channel are read once."""
    numbers = _numbers(task, layout, column, count)
    for k in range(lines):
        _write_some(task, activation, numbers, (line + k * apart) * layout.columns + column, count, streaming)


@inline
def _write_group(
    task: Task, activation: Activation, layout: Layout, line: int, lines: int, apart: int, streaming: bool
) -> None:
    rest = layout.columns % LANES
    for column in range(0, layout.columns - rest, LANES):
        _write_columns(task, activation, layout, line, lines, apart, column, LANES, streaming)
    if rest:
        _write_columns(task, activation, layout, line, lines, apart, layout.columns - rest, rest, False)


def _write_rows(task: Task, activation: Activation, layout: Layout, first: int, last: int, streaming: bool) -> None:
    # Groups span all lines, without the runs of the sums: runs of 64 rows take up to 1.5 times as long.
    groups = (last - first) // GROUP
    apart, step = steps(task.x, layout, groups)
    for k in range(groups):
        _write_group(task, activation, layout, first + k * step, GROUP, apart, streaming)
    for line in range(first + groups * GROUP, last):
        _write_group(task, activation, layout, line, 1, 1, streaming)


def _write_planes(task: Task, activation: Activation, layout: Layout, first: int, last: int, streaming: bool) -> None:
    rest = layout.columns % LANES
    channel = first % layout.channels
    for line in range(first, last):
        numbers = _numbers(task, layout, channel, LANES)
        channel = next_channel(channel, layout)
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
def write(task: Task, activation: Activation, layout: Layout, streaming: bool, blocks: int) -> None:
    lines = task.x.size // layout.columns
    for block in prange(blocks):
        _write_lines(task, activation, layout, block * lines // blocks, (block + 1) * lines // blocks, streaming)
        if streaming:
            drain()

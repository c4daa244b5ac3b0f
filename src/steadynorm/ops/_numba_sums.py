"""The sums of the compiled kernels per channel: the moments, and the two sums of the gradient.

Sums are float32 over runs of at most ``RUN`` numbers per lane, merged in float64. Runs depend on shape and thread count
alone, so the same input gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
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
from steadynorm.ops._numba_simd import LANES, fill, keep, load, store, total, where
from steadynorm.ops._numba_types import (
    Activation,
    Array,
    Identity,
    Type,
    Vector,
    activation_backward,
    choose,
    compiled,
    inline,
    parallel,
)

__all__ = ["Sums", "measure", "sample_means", "total_sums"]

RUN = 64
"""Most numbers that a lane sums in float32 before the sum is added in float64."""
SAMPLES = 16
"""Evenly spaced rows from which the means are guessed."""


class Sums(NamedTuple):
    """The inputs of ``sums``; tensors are flat."""

    dy: Array | None  # None: x − center instead, whose sums give the moments
    x: Array
    residual: Array | None
    numbers: Array  # center, scale and shift of every channel: float32, 3·C


@inline
def _upstream(dy: Array | None, xc: Vector, at: int, count: int) -> Vector:
    return keep(xc, count) if dy is None else read(dy, at, count)


@inline
def _terms(task: Sums, activation: Activation, numbers: Vector, at: int, count: int) -> tuple[Vector, Vector]:
    """Compute dy′ and dy′·(x − center)."""
    center, scale, shift = numbers
    xc = read(task.x, at, count) - center
    pre = pre_activation(xc, scale, shift, task.residual, at, count)
    dpre = activation_backward(activation, _upstream(task.dy, xc, at, count), pre)
    return dpre, dpre * xc


@inline
def _add_columns(
    task: Sums,
    activation: Activation,
    layout: Layout,
    run: Array,
    line: int,
    lines: int,
    apart: int,
    column: int,
    count: int,
) -> None:
    """Add ``count`` columns of ``lines`` rows to the run."""
    numbers = three_numbers(task.numbers, column, layout, count)
    sum_dy, sum_dy_xc = fill(0.0), fill(0.0)
    for k in range(lines):
        dpre, dpre_xc = _terms(task, activation, numbers, (line + k * apart) * layout.columns + column, count)
        sum_dy += dpre
        sum_dy_xc += dpre_xc
    half = run.size // 2
    store(run, column, load(run, column) + sum_dy)
    store(run, half + column, load(run, half + column) + sum_dy_xc)


@inline
def _add_group(
    task: Sums, activation: Activation, layout: Layout, run: Array, line: int, lines: int, apart: int
) -> None:
    rest = layout.columns % LANES
    for column in range(0, layout.columns - rest, LANES):
        _add_columns(task, activation, layout, run, line, lines, apart, column, LANES)
    if rest:
        _add_columns(task, activation, layout, run, line, lines, apart, layout.columns - rest, rest)


def _sum_rows(task: Sums, activation: Activation, layout: Layout, totals: Array, first: int, last: int) -> None:
    run = np.empty(totals.size, np.float32)
    for start in range(first, last, RUN):
        stop = min(start + RUN, last)
        for i in range(run.size):
            run[i] = 0
        groups = (stop - start) // GROUP
        apart, step = steps(task.x, layout, groups)
        for k in range(groups):
            _add_group(task, activation, layout, run, start + k * step, GROUP, apart)
        for line in range(start + groups * GROUP, stop):
            _add_group(task, activation, layout, run, line, 1, 1)
        for i in range(run.size):
            totals[i] += run[i]


def _sum_planes(task: Sums, activation: Activation, layout: Layout, totals: Array, first: int, last: int) -> None:
    half = totals.size // 2
    channel = first % layout.channels
    for line in range(first, last):
        numbers = three_numbers(task.numbers, channel, layout, LANES)
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
        channel = next_channel(channel, layout)


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
def total_sums(task: Sums, activation: Activation, layout: Layout, blocks: int) -> Array:
    """Sum dy′ and dy′·(x − center) per channel: float64, shape (2, C rounded up to a multiple of LANES)."""
    totals = _partial_sums(task, activation, layout, blocks)
    result = totals[0]
    for block in range(1, blocks):
        for i in range(result.size):
            result[i] += totals[block, i]
    both: Array = result.reshape(2, result.size // 2)
    return both


@compiled
def sample_means(x: Array, layout: Layout, center: Array, samples: int, picked: int) -> Array:
    """Return the mean of x − center of ``picked`` evenly spaced samples: float64, shape (picked, C).

    Args:
        center: center of every channel, in an array of 3·C numbers.
    """
    channels, lines = layout.channels, x.size // samples // layout.columns
    width = (channels + LANES - 1) // LANES * LANES
    totals = np.zeros((picked, 2 * width))
    for k in range(picked):  # Numba cannot make this loop parallel, and prange warns
        first = k * samples // picked * lines
        _sum_lines(Sums(None, x, None, center), Identity(), layout, totals[k], first, first + lines)
    return totals[:, :channels] / (x.size // samples // channels)


@inline
def _absolute(values: Vector) -> Vector:
    return where(values > fill(0.0), values, fill(0.0) - values)


@compiled
def _sample_rows(x: Array, layout: Layout, guess: Array) -> None:
    lines = x.size // layout.columns
    picked = min(SAMPLES, lines)
    for column in range(0, layout.columns, LANES):
        count = min(LANES, layout.columns - column)
        values, sizes = fill(0.0), fill(0.0)
        for k in range(picked):
            value = read(x, k * lines // picked * layout.columns + column, count)
            values += value
            sizes += _absolute(value)
        put(guess, column, values * fill(1.0 / picked), count, False)
        put(guess, layout.channels + column, sizes * fill(1.0 / picked), count, False)


@compiled
def _sample_planes(x: Array, layout: Layout, guess: Array) -> None:
    count = min(LANES, layout.columns)
    middle = (layout.columns - count) // 2
    halfway = x.size // layout.columns // layout.channels // 2 * layout.channels
    for channel in range(layout.channels):
        one = read(x, channel * layout.columns + middle, count)
        other = read(x, (halfway + channel) * layout.columns + middle, count)
        guess[channel] = total(one + other) / np.float32(2 * count)
        guess[layout.channels + channel] = total(_absolute(one) + _absolute(other)) / np.float32(2 * count)


def _sample(x: Array, layout: Layout, guess: Array) -> None:
    """Guess each channel's mean and mean absolute value from a few positions."""
    raise NotImplementedError


@choose(_sample)
def _sample_in(x: Type, layout: Type, guess: Type) -> Callable[..., None]:
    part = _sample_rows if layout.instance_class is Rows else _sample_planes
    return lambda x, layout, guess: part(x, layout, guess)


@inline
def _on_grid(value: float, power: float) -> float:
    """Round to a multiple of power/2¹³, so that x − center is exact for numbers of few digits.

    With an arbitrary center and bfloat16 x, it would be rounded alike for all numbers between two powers of two, and
    their mean would err as much as each number.
    """
    rounded: float = np.rint(value * (8192.0 / power)) * (power / 8192.0)
    return rounded


@compiled
def measure(x: Array, layout: Layout, mean: Array, var: Array, blocks: int) -> None:
    """Write the mean and the biased variance of every channel."""
    channels, count = layout.channels, x.size // layout.channels
    center = np.zeros(3 * channels, np.float32)  # scale and shift are not used
    _sample(x, layout, center)
    powers = center[channels : 2 * channels]
    bits = powers.view(np.int32)
    for channel in range(channels):
        bits[channel] &= 0x7F800000  # keeps the power of two; NaN becomes infinity
        known = 0 < powers[channel] < np.inf
        center[channel] = _on_grid(center[channel], powers[channel]) if known else 0.0
    for _ in range(2):
        totals = total_sums(Sums(None, x, None, center), Identity(), layout, blocks)
        far = False
        for channel in range(channels):
            first = totals[0, channel] / count
            second = totals[1, channel] / count - first * first
            mean[channel] = center[channel] + first
            var[channel] = 0.0 if second < 0.0 else second  # NaN stays NaN
            far |= first * first > second
        if not far:
            break
        # Squares about a center far from the mean lose digits: measure again, about the mean.
        for channel in range(channels):
            known = x.itemsize == 2 and 0 < powers[channel] < np.inf
            center[channel] = _on_grid(mean[channel], powers[channel]) if known else mean[channel]

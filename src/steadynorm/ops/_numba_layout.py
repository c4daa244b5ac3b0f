"""Memory access of the compiled kernels: lines of numbers, read in order, sixteen at a time.

Numba compiles one version per combination of argument types. So types encode what the code depends on: the layout, the
activation, an absent residual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from steadynorm.ops._numba_simd import LANES, fill, load, load_some, store, store_some, stream
from steadynorm.ops._numba_types import Array, Type, Vector, choose_inline, inline

__all__ = [
    "GROUP",
    "Layout",
    "Planes",
    "Rows",
    "next_channel",
    "pre_activation",
    "put",
    "read",
    "steps",
    "three_numbers",
]

GROUP = 4
"""Rows that are processed together, so that numbers per channel are read and sums are written once for all."""
SHORT = 128
"""Bytes of a row up to which the rows of a group are adjacent; longer rows come from separate streams."""


class Rows(NamedTuple):
    """Channels-last: a line is one position, its columns are the channels."""

    channels: int
    columns: int


class Planes(NamedTuple):
    """Contiguous: a line is one plane of a channel; channels alternate."""

    channels: int
    columns: int


Layout = Rows | Planes


@inline
def read(numbers: Array, at: int, count: int) -> Vector:
    return load(numbers, at) if count == LANES else load_some(numbers, at, count)


@inline
def put(target: Array, at: int, values: Vector, count: int, streaming: bool) -> None:
    if streaming:
        stream(target, at, values)
    elif count == LANES:
        store(target, at, values)
    else:
        store_some(target, at, values, count)


@inline
def _three_of_columns(numbers: Array, at: int, channels: int, count: int) -> tuple[Vector, Vector, Vector]:
    return read(numbers, at, count), read(numbers, at + channels, count), read(numbers, at + 2 * channels, count)


@inline
def _three_of_channel(numbers: Array, at: int, channels: int) -> tuple[Vector, Vector, Vector]:
    return fill(numbers[at]), fill(numbers[at + channels]), fill(numbers[at + 2 * channels])


def three_numbers(numbers: Array, at: int, layout: Layout, count: int) -> tuple[Vector, Vector, Vector]:
    """Return three numbers for each of ``count`` channels (rows), or one channel's three, repeated (planes)."""
    raise NotImplementedError


@choose_inline(three_numbers)
def _three_numbers_in(numbers: Type, at: Type, layout: Type, count: Type) -> Callable[..., Any]:
    if layout.instance_class is Rows:
        return lambda numbers, at, layout, count: _three_of_columns(numbers, at, layout.channels, count)
    return lambda numbers, at, layout, count: _three_of_channel(numbers, at, layout.channels)


@inline
def pre_activation(xc: Vector, scale: Vector, shift: Vector, residual: Array | None, at: int, count: int) -> Vector:
    """Compute (x − center)·scale + shift + residual."""
    pre = xc * scale + shift
    if residual is not None:
        pre += read(residual, at, count)
    return pre


@inline
def steps(x: Array, layout: Layout, groups: int) -> tuple[int, int]:
    """Return the distances in rows between neighbours of a group, and between the starts of groups."""
    return (1, GROUP) if layout.columns * x.itemsize <= SHORT else (groups, 1)


@inline
def next_channel(channel: int, layout: Layout) -> int:
    """Return the channel of the next plane; a division would take as long as a short plane."""
    return channel + 1 if channel + 1 < layout.channels else 0

"""How the compiled kernels walk memory: lines of numbers, read one after the other, sixteen at a time.

Numba compiles a version per type of the arguments, so a type carries what the code depends on: the layout, the
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
"""Rows that are computed side by side, so that their columns' numbers are read and their sums written once."""
SHORT = 128
"""Bytes of a row up to which a group's rows are neighbours; of longer ones each is read in a stream of its own."""


class Rows(NamedTuple):
    """A line is a position, its columns are the channels (channels-last)."""

    channels: int
    columns: int


class Planes(NamedTuple):
    """A line is a plane of one channel; the channels take turns (contiguous)."""

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
    """Give three numbers each of ``count`` channels (rows), or those of one channel ``count`` times (planes)."""
    raise NotImplementedError


@choose_inline(three_numbers)
def _three_numbers_in(numbers: Type, at: Type, layout: Type, count: Type) -> Callable[..., Any]:
    if layout.instance_class is Rows:
        return lambda numbers, at, layout, count: _three_of_columns(numbers, at, layout.channels, count)
    return lambda numbers, at, layout, count: _three_of_channel(numbers, at, layout.channels)


@inline
def pre_activation(xc: Vector, scale: Vector, shift: Vector, residual: Array | None, at: int, count: int) -> Vector:
    """(x − center)·scale + shift + residual."""
    pre = xc * scale + shift
    if residual is not None:
        pre += read(residual, at, count)
    return pre


@inline
def steps(x: Array, layout: Layout, groups: int) -> tuple[int, int]:
    """Give how many rows it is from one of a group to its next, and from one group to the next."""
    return (1, GROUP) if layout.columns * x.itemsize <= SHORT else (groups, 1)


@inline
def next_channel(channel: int, layout: Layout) -> int:
    """Give the channel of the next plane; a division for each would take as long as a short plane."""
    return channel + 1 if channel + 1 < layout.channels else 0

"""The ten shapes of the embedded data set, as functions of the plane.

Each takes coordinates in the shape's frame, where it fits into a circle of radius 1 around the origin, and
gives about how deep a point lies inside the shape: positive inside, 0 on the outline, negative outside.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHAPES"]

Array = NDArray[np.float64]

# Directions to the corners of a regular pentagon, written out because a library's sine may differ in its last
# digit.
_PENTAGON = (
    (0.0, 1.0),
    (0.9510565162951535, 0.3090169943749474),
    (0.5877852522924731, -0.8090169943749475),
    (-0.5877852522924731, -0.8090169943749475),
    (-0.9510565162951535, 0.3090169943749474),
)
_HALF_ROOT_3 = 0.8660254037844386


def _disc(u: Array, v: Array) -> Array:
    return 0.9 - np.sqrt(u * u + v * v)


def _ring(u: Array, v: Array) -> Array:
    return 0.22 - np.abs(np.sqrt(u * u + v * v) - 0.75)


def _square(u: Array, v: Array) -> Array:
    return 0.78 - np.maximum(np.abs(u), np.abs(v))


def _triangle(u: Array, v: Array) -> Array:
    return 0.5 - np.maximum(-v, 0.5 * v + _HALF_ROOT_3 * np.abs(u))


def _pentagon(u: Array, v: Array) -> Array:
    sides = [u * x - v * y for x, y in _PENTAGON]
    inside: Array = 0.8 - np.max(sides, axis=0)
    return inside


def _star(u: Array, v: Array) -> Array:
    # Inside at least four of the five half planes that a pentagram's lines bound.
    sides = np.sort([u * x - v * y for x, y in _PENTAGON], axis=0)
    inside: Array = 0.36 - sides[3]
    return inside


def _cross(u: Array, v: Array) -> Array:
    long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return np.minimum(0.92 - long, 0.26 - short)


def _crescent(u: Array, v: Array) -> Array:
    bite = np.sqrt((u - 0.45) * (u - 0.45) + v * v) - 0.72
    return np.minimum(0.95 - np.sqrt(u * u + v * v), bite)


def _angle(u: Array, v: Array) -> Array:
    across: Array = np.minimum(0.85 - np.abs(u), 0.24 - np.abs(v - 0.6))
    down = np.minimum(0.85 - np.abs(v), 0.24 - np.abs(u - 0.6))
    return np.maximum(across, down)


def _bars(u: Array, v: Array) -> Array:
    stripes: Array = 0.16 - np.abs(np.abs(u) - np.where(np.abs(u) < 0.3, 0.0, 0.6))
    return np.minimum(stripes, 0.8 - np.abs(v))


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "pentagon": _pentagon,
    "star": _star,
    "cross": _cross,
    "crescent": _crescent,
    "angle": _angle,
    "bars": _bars,
}
"""Class name -> function, in the order of the labels."""

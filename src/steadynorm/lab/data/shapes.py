"""The embedded data set: ten geometric shapes, drawn small on cluttered, unevenly lit ground.

It needs no download and takes about a second to draw. Every pixel comes from the raw words of a PCG64
generator and from additions, multiplications, divisions and square roots in float64, each of which IEEE 754
rounds in one way only; so the same bytes come out everywhere. Library functions that may differ in the last
digit (sines, matrix products of fractions) are not used.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from steadynorm.lab.data.images import SIZE, Dataset, Images
from steadynorm.lab.data.shape_functions import SHAPES

__all__ = ["make_shapes"]

TRAIN_COUNT = 1536
VALIDATION_COUNT = 1024
_CHUNK = 256
_DISTRACTORS = 3

Array = NDArray[np.float64]


class _Draws:
    """Uniform numbers from the raw words of PCG64, which NumPy keeps the same in all its versions."""

    def __init__(self, seed: int) -> None:
        self._words = np.random.PCG64(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Array:
        words = self._words.random_raw(math.prod(shape)).reshape(shape)
        return low + (high - low) * ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)

    def bytes(self, *shape: int) -> NDArray[np.uint8]:
        count = math.prod(shape)
        words: NDArray[np.uint64] = self._words.random_raw(-(-count // 8))
        return words.astype("<u8").view(np.uint8)[:count].reshape(shape)


def make_shapes() -> Dataset:
    """Draw the data set: 2,048 training and 1,024 validation images of 32 x 32 pixels in ten classes.

    Each class has the same number of images in a split, give or take one. Position, size, rotation, colours,
    contrast (a shape may be lighter or darker than its ground), texture, clutter, light and noise are
    random.
    """
    train = _split(TRAIN_COUNT, _Draws(1))
    validation = _split(VALIDATION_COUNT, _Draws(2))
    pixels = train.rows.reshape(-1, 3).numpy().astype(np.int64)
    mean = pixels.sum(axis=0) / (255 * len(pixels))
    var = (pixels * pixels).sum(axis=0) / (255**2 * len(pixels)) - mean * mean
    return Dataset(
        name="shapes",
        train=train,
        validation=validation,
        classes=tuple(SHAPES),
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(var).tolist()),
    )


def _split(count: int, draws: _Draws) -> Images:
    labels = (np.arange(count) % len(SHAPES))[np.argsort(draws.uniform(0, 1, count), kind="stable")]
    drawn = [_draw(part, draws) for part in np.split(labels, range(_CHUNK, count, _CHUNK))]
    rows = torch.from_numpy(np.ascontiguousarray(np.concatenate(drawn)))
    return Images.of_rows(rows, torch.from_numpy(labels.astype(np.int64)))


def _draw(labels: NDArray[np.int64], draws: _Draws) -> NDArray[np.uint8]:
    """Draw one image per label: shape (N, 32, 32, 3)."""
    count = len(labels)
    ground = draws.uniform(70, 185, count, 1, 1, 1) + draws.uniform(-25, 25, count, 1, 1, 3)
    picture = ground + _texture(draws, count, 5, 25.0) + _texture(draws, count, 12, 15.0)
    for _ in range(_DISTRACTORS):
        picture = _paint_distractor(picture, ground, draws)
    mask = _mask(labels, draws)[..., None]
    sign = np.where(draws.uniform(0, 1, count, 1, 1, 1) < 0.5, -1.0, 1.0)
    colour = ground + sign * draws.uniform(55, 115, count, 1, 1, 1) + draws.uniform(-25, 25, count, 1, 1, 3)
    painted = colour + _texture(draws, count, 8, 15.0)
    picture = picture + mask * (painted - picture)
    return _photograph(picture, draws)


def _photograph(picture: Array, draws: _Draws) -> NDArray[np.uint8]:
    """Change contrast and brightness of each image as a whole, add noise, and round to bytes."""
    count = len(picture)
    gain = draws.uniform(0.5, 1.2, count, 1, 1, 1)
    light = draws.uniform(-35, 35, count, 1, 1, 1)
    # The sum of four bytes is close enough to a normal distribution; its standard deviation is about 148.
    noise = draws.bytes(4, *picture.shape).astype(np.float64).sum(axis=0) - 510.0
    strength = draws.uniform(2, 10, count, 1, 1, 1) / 148.0
    taken = np.clip((picture - 128) * gain + 128 + light + strength * noise, 0, 255)
    rounded: NDArray[np.uint8] = np.floor(taken + 0.5).astype(np.uint8)
    return rounded


def _texture(draws: _Draws, count: int, cells: int, strength: float) -> Array:
    """Return random blotches of about 32 / ``cells`` pixels: shape (N, 32, 32, 3), within ± ``strength``."""
    knots = draws.bytes(count, 3, cells, cells).astype(np.float64) - 127.5
    weights = _interpolation(cells)
    # Every product and sum is a multiple of 1/2 and far below 2**53. Sums are exact in any order.
    smooth = weights @ knots @ weights.T
    return (smooth * (strength / (127.5 * SIZE * SIZE))).transpose(0, 2, 3, 1)


def _interpolation(cells: int) -> Array:
    """Return whole-number weights of linear interpolation, shape (32, cells); rows sum to 32."""
    place = np.arange(SIZE) * (cells - 1)
    left, rest = place // SIZE, place % SIZE
    weights = np.zeros((SIZE, cells))
    weights[np.arange(SIZE), left] = SIZE - rest
    weights[np.arange(SIZE), np.minimum(left + 1, cells - 1)] += rest
    return weights


def _coordinates(draws: _Draws, radius: Array) -> tuple[Array, Array]:
    """Return pixel coordinates in a shape's own frame, where its radius is 1: two of shape (N, 32, 32)."""
    count = len(radius)
    slope = draws.uniform(-1, 1, count, 1, 1)
    half = draws.uniform(0, 1, count, 1, 1) < 0.5
    # A rotation by rational numbers: (1 - t^2, 2t) / (1 + t^2) is on the unit circle for every t.
    cosine, sine = (1 - slope * slope) / (1 + slope * slope), 2 * slope / (1 + slope * slope)
    cosine, sine = np.where(half, -cosine, cosine), np.where(half, -sine, sine)
    margin = SIZE / 2 - 0.8 * radius
    axis = np.arange(SIZE) - (SIZE - 1) / 2
    x = axis[None, None, :] - margin * draws.uniform(-1, 1, count, 1, 1)
    y = axis[None, :, None] - margin * draws.uniform(-1, 1, count, 1, 1)
    return (cosine * x + sine * y) / radius, (cosine * y - sine * x) / radius


def _mask(labels: NDArray[np.int64], draws: _Draws) -> Array:
    """Return how much of each pixel the shape covers, in [0, 1]: shape (N, 32, 32)."""
    radius = draws.uniform(8, 14, len(labels), 1, 1)
    u, v = _coordinates(draws, radius)
    depth = np.empty_like(u)
    for label, function in enumerate(SHAPES.values()):
        chosen = labels == label
        depth[chosen] = function(u[chosen], v[chosen])
    covered: Array = np.clip(depth * radius + 0.5, 0, 1)
    return covered


def _paint_distractor(picture: Array, ground: Array, draws: _Draws) -> Array:
    """Paint a bar or a blob, which belongs to no class, onto each ground."""
    count = len(picture)
    radius = draws.uniform(2.5, 6, count, 1, 1)
    u, v = _coordinates(draws, radius)
    stretch = draws.uniform(0.3, 3, count, 1, 1)
    u = u * stretch
    depth = 1 - np.sqrt(u * u + v * v)
    covered = np.clip(depth * radius + 0.5, 0, 1)[..., None]
    colour = ground + draws.uniform(-60, 60, count, 1, 1, 3)
    painted: Array = picture + covered * (colour - picture)
    return painted

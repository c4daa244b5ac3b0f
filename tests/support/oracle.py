"""Batch normalization in NumPy float64, from the definition, and the one rule by which results are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["EPS", "Gradients", "Normalized", "assert_as_accurate_as", "batch_norm", "batch_norm_gradients", "to_numpy"]

Array = NDArray[np.float64]
EPS = 1e-5
FLOOR_ULPS = 4


@dataclass(frozen=True, kw_only=True)
class Normalized:
    """Everything a forward computes, from the definition."""

    y: Array
    mean: Array
    var: Array
    var_unbiased: Array
    before_activation: Array


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Gradients of sum(dy·y)."""

    dx: Array
    dresidual: Array
    dweight: Array
    dbias: Array


def to_numpy(values: Tensor) -> Array:
    """Give a float64 copy; every floating dtype is exact in it."""
    return values.detach().to(torch.float64).numpy().copy()


def batch_norm(
    x: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    eps: float = EPS,
) -> Normalized:
    """Normalize each channel by itself, in a loop, as the definition says."""
    values = np.moveaxis(to_numpy(x), 1, 0)
    count = values[0].size
    mean = np.array([channel.sum() / count for channel in values])
    var = np.array([((channel - m) ** 2).sum() / count for channel, m in zip(values, mean, strict=True)])
    gain = np.ones(len(values)) if weight is None else to_numpy(weight)
    offset = np.zeros(len(values)) if bias is None else to_numpy(bias)
    before = np.stack(
        [
            (channel - m) / np.sqrt(v + eps) * g + o
            for channel, m, v, g, o in zip(values, mean, var, gain, offset, strict=True)
        ],
        axis=1,
    )
    if residual is not None:
        before = before + to_numpy(residual)
    return Normalized(
        y=_activate(before, activation),
        mean=mean,
        var=var,
        var_unbiased=var * count / max(count - 1, 1),
        before_activation=before,
    )


def batch_norm_gradients(
    dy: Tensor,
    x: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    eps: float = EPS,
) -> Gradients:
    """Differentiate in terms of the normalized values u.

    With g = dy·activation′, dweight = Σg·u, dbias = Σg and dx = weight/σ · (g − mean(g) − u·mean(g·u)): the two
    subtracted terms are what the batch's mean and variance take away.
    """
    forward = batch_norm(x, weight=weight, bias=bias, residual=residual, activation=activation, eps=eps)
    g = to_numpy(dy) * _slope(forward.before_activation, activation)
    axes = tuple(axis for axis in range(x.dim()) if axis != 1)
    spread = tuple(-1 if axis == 1 else 1 for axis in range(x.dim()))
    sigma = np.sqrt(forward.var + eps)
    u = (to_numpy(x) - forward.mean.reshape(spread)) / sigma.reshape(spread)
    gain = np.ones_like(sigma) if weight is None else to_numpy(weight)
    removed = g.mean(axes, keepdims=True) + u * (g * u).mean(axes, keepdims=True)
    return Gradients(
        dx=(gain / sigma).reshape(spread) * (g - removed),
        dresidual=g,
        dweight=(g * u).sum(axes),
        dbias=g.sum(axes),
    )


def assert_as_accurate_as(
    *, native: Tensor, ours: Tensor, oracle: Array, what: str, floor_ulps: int = FLOOR_ULPS
) -> None:
    """Hold our error to the oracle to twice that of torch's own result in the same dtype.

    The floor is a few units in the last place of the largest oracle value: where torch happens to be exact,
    twice nothing is nothing.
    """
    where = f"{what}: {ours.dtype} {tuple(ours.shape)}"
    assert ours.dtype == native.dtype, f"{where}: torch gives {native.dtype}"
    assert tuple(ours.shape) == oracle.shape, f"{where}: the oracle has shape {oracle.shape}"
    assert np.isfinite(oracle).all(), f"{where}: the oracle is not finite, nothing can be compared"
    error = np.abs(to_numpy(ours) - oracle).max()
    native_error = np.abs(to_numpy(native) - oracle).max()
    floor = floor_ulps * torch.finfo(ours.dtype).eps * np.abs(oracle).max()
    ratio = error / native_error if native_error else np.inf
    assert error <= 2 * native_error + floor, (
        f"{where}: error {error:.3g} is {ratio:.3g} times torch's {native_error:.3g} (floor {floor:.3g})"
    )


def _activate(before: Array, activation: str | None) -> Array:
    if activation == "relu":
        return np.maximum(before, 0)
    if activation == "leaky_relu":
        return np.maximum(before, 0) + 0.01 * np.minimum(before, 0)
    if activation == "silu":
        decay: Array = np.exp(-before)
        return before / (1 + decay)
    assert activation is None, activation
    return before


def _slope(before: Array, activation: str | None) -> Array:
    if activation == "relu":
        return np.heaviside(before, 0.0)
    if activation == "leaky_relu":
        return 0.01 + 0.99 * np.heaviside(before, 0.0)
    if activation == "silu":
        decay: Array = np.exp(-before)
        return (1 + decay + before * decay) / (1 + decay) ** 2
    assert activation is None, activation
    return np.ones_like(before)

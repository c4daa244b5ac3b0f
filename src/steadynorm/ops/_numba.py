"""The four kernels on the CPU: float32 and bfloat16, contiguous or channels-last, one pass over the data each.

Signatures and meaning are those of ``reference.py``. A tensor is seen either as rows, shape (N·S, C), where the
channels lie together (channels-last, or (N, C) itself), or as planes, shape (N, C, S). Arithmetic is float32;
bfloat16 is its upper half and is rounded to nearest even. Sums are float32 over short runs, joined in float64.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import intrinsic
from torch import Tensor

from steadynorm.ops.reference import LEAKY_SLOPE, Activation

__all__ = ["moments", "supports", "transform", "transform_grad", "transform_sums"]

Array = np.ndarray[Any, Any]
_PROCESS = os.getpid()
RUN = 64
"""Rows, or values of a plane times 16, that are summed in float32 before the sum goes to float64."""
# Sums may be reordered, which vectors need; NaN and infinity keep their meaning.
FAST = {"reassoc", "contract", "nsz", "arcp"}


def supports(x: Tensor, *others: Tensor | None) -> bool:
    """Whether these kernels take such tensors: of one dtype out of two, x dense in a layout they know.

    Not in a process forked from one that has used them: GNU OpenMP ends such a child.
    """
    return (
        x.dtype in (torch.float32, torch.bfloat16)
        and all(other is None or other.dtype == x.dtype for other in others)
        and (_is_rows(x) or x.is_contiguous())
        and os.getpid() == _PROCESS
    )


def _bitcast(source: Any, target: Any) -> Any:  # noqa: ANN401 (numba's types)
    """Make a function that reads the bits of one type as another."""

    def read(typing: Any, value: Any) -> Any:  # noqa: ANN401 (the protocol of an intrinsic)
        return target(source), lambda context, builder, signature, arguments: builder.bitcast(
            arguments[0], context.get_value_type(target)
        )

    return intrinsic(read)


_bits_to_float = _bitcast(types.uint32, types.float32)
_float_to_bits = _bitcast(types.float32, types.uint32)


def _float32(value: np.float32) -> np.float32:
    return value


def _from_bfloat16(bits: np.uint16) -> Any:  # noqa: ANN401 (a number of numba's)
    return _bits_to_float(np.uint32(bits) << np.uint32(16))


def _to_bfloat16(value: np.float32) -> np.uint16:
    """Round to nearest, ties to even; NaN stays NaN."""
    bits: Any = _float_to_bits(value)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(rounded if value == value else np.uint32(0x7FC0))


@cache
def _access(half: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Give what turns a stored number into float32, and back."""
    read, write = (_from_bfloat16, _to_bfloat16) if half else (_float32, _float32)
    return njit(inline="always")(read), njit(inline="always")(write)


@cache
def _activation(name: Activation | None) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Give the activation and its backward, (dy, pre) -> dy·activation′(pre), with torch's ways at 0 and NaN."""
    one, slope = np.float32(1), np.float32(LEAKY_SLOPE)

    def identity(pre: np.float32) -> np.float32:
        return pre

    def identity_backward(dy: np.float32, pre: np.float32) -> np.float32:
        return dy

    def relu(pre: np.float32) -> np.float32:
        return np.float32(0) if pre <= 0 else pre

    def relu_backward(dy: np.float32, pre: np.float32) -> np.float32:
        return np.float32(0) if pre <= 0 else dy

    def leaky_relu(pre: np.float32) -> np.float32:
        return pre if pre > 0 else pre * slope

    def leaky_relu_backward(dy: np.float32, pre: np.float32) -> np.float32:
        return dy if pre > 0 else dy * slope

    def silu(pre: np.float32) -> np.float32:
        result: np.float32 = pre / (one + np.exp(-pre))
        return result

    def silu_backward(dy: np.float32, pre: np.float32) -> np.float32:
        sigmoid = one / (one + np.exp(-pre))
        result: np.float32 = dy * sigmoid * (one + pre * (one - sigmoid))
        return result

    pairs: dict[Activation | None, tuple[Callable[..., Any], Callable[..., Any]]] = {
        None: (identity, identity_backward),
        "relu": (relu, relu_backward),
        "leaky_relu": (leaky_relu, leaky_relu_backward),
        "silu": (silu, silu_backward),
    }
    forward, backward = pairs[name]
    return njit(inline="always")(forward), njit(inline="always")(backward)


def _parallel(function: Callable[..., Any]) -> Callable[..., Any]:
    return njit(parallel=True, fastmath=FAST, error_model="numpy", nogil=True)(function)


@cache
def _transform_kernel(planes: bool, half: bool, activation: Activation | None) -> Callable[..., None]:
    load, store = _access(half)
    activate, _ = _activation(activation)

    def kernel(
        x: Array, center: Array, scale: Array, shift: Array, residual: Array | None, y: Array, blocks: int
    ) -> None:
        rows, columns = x.shape
        channels = center.shape[0]
        for block in prange(blocks):
            for i in range(block * rows // blocks, (block + 1) * rows // blocks):
                for j in range(columns):
                    c = i % channels if planes else j
                    pre = (load(x[i, j]) - center[c]) * scale[c] + shift[c]
                    if residual is not None:
                        pre += load(residual[i, j])
                    y[i, j] = store(activate(pre))

    return _parallel(kernel)


@cache
def _grad_kernel(planes: bool, half: bool, activation: Activation | None) -> Callable[..., None]:
    load, store = _access(half)
    _, behind = _activation(activation)

    def kernel(
        dy: Array,
        x: Array,
        center: Array,
        scale: Array,
        shift: Array,
        residual: Array | None,
        a: Array,
        b: Array,
        c: Array,
        dx: Array,
        d_residual: Array | None,
        blocks: int,
    ) -> None:
        rows, columns = x.shape
        channels = center.shape[0]
        for block in prange(blocks):
            for i in range(block * rows // blocks, (block + 1) * rows // blocks):
                for j in range(columns):
                    k = i % channels if planes else j
                    xc = load(x[i, j]) - center[k]
                    pre = xc * scale[k] + shift[k]
                    if residual is not None:
                        pre += load(residual[i, j])
                    dpre = behind(load(dy[i, j]), pre)
                    if d_residual is not None:
                        d_residual[i, j] = store(dpre)
                    dx[i, j] = store(a[k] * dpre + b[k] * xc + c[k])

    return _parallel(kernel)


@cache
def _sums_kernel(planes: bool, half: bool, activation: Activation | None) -> Callable[..., Array]:
    """Two sums per channel: Σdp and Σdp·xc, one partial result per block or plane."""
    load, _ = _access(half)
    _, behind = _activation(activation)

    def by_rows(
        dy: Array, x: Array, center: Array, scale: Array, shift: Array, residual: Array | None, blocks: int
    ) -> Array:
        rows, columns = x.shape
        totals = np.zeros((blocks, 2, columns))
        for block in prange(blocks):
            run = np.zeros((2, columns), np.float32)
            stop = (block + 1) * rows // blocks
            for start in range(block * rows // blocks, stop, RUN):
                run[:] = 0
                for i in range(start, min(start + RUN, stop)):
                    for j in range(columns):
                        xc = load(x[i, j]) - center[j]
                        pre = xc * scale[j] + shift[j]
                        if residual is not None:
                            pre += load(residual[i, j])
                        dpre = behind(load(dy[i, j]), pre)
                        run[0, j] += dpre
                        run[1, j] += dpre * xc
                totals[block] += run
        return totals

    def by_planes(
        dy: Array, x: Array, center: Array, scale: Array, shift: Array, residual: Array | None, blocks: int
    ) -> Array:
        rows, columns = x.shape
        channels = center.shape[0]
        totals = np.zeros((rows // channels, 2, channels))
        for block in prange(blocks):
            for i in range(block * rows // blocks, (block + 1) * rows // blocks):
                k = i % channels
                middle, slope, offset = center[k], scale[k], shift[k]
                for start in range(0, columns, 16 * RUN):
                    sum_dy = sum_dy_xc = np.float32(0)
                    for j in range(start, min(start + 16 * RUN, columns)):
                        xc = load(x[i, j]) - middle
                        pre = xc * slope + offset
                        if residual is not None:
                            pre += load(residual[i, j])
                        dpre = behind(load(dy[i, j]), pre)
                        sum_dy += dpre
                        sum_dy_xc += dpre * xc
                    totals[i // channels, 0, k] += sum_dy
                    totals[i // channels, 1, k] += sum_dy_xc
        return totals

    return _parallel(by_planes if planes else by_rows)


@cache
def _moments_kernel(planes: bool, half: bool) -> Callable[..., Array]:
    """Two sums per channel about a center: Σ(x − center) and Σ(x − center)², partial as above."""
    load, _ = _access(half)

    def by_rows(x: Array, center: Array, blocks: int) -> Array:
        rows, columns = x.shape
        totals = np.zeros((blocks, 2, columns))
        for block in prange(blocks):
            run = np.zeros((2, columns), np.float32)
            stop = (block + 1) * rows // blocks
            for start in range(block * rows // blocks, stop, RUN):
                run[:] = 0
                for i in range(start, min(start + RUN, stop)):
                    for j in range(columns):
                        xc = load(x[i, j]) - center[j]
                        run[0, j] += xc
                        run[1, j] += xc * xc
                totals[block] += run
        return totals

    def by_planes(x: Array, center: Array, blocks: int) -> Array:
        rows, columns = x.shape
        channels = center.shape[0]
        totals = np.zeros((rows // channels, 2, channels))
        for block in prange(blocks):
            for i in range(block * rows // blocks, (block + 1) * rows // blocks):
                middle = center[i % channels]
                for start in range(0, columns, 16 * RUN):
                    first = second = np.float32(0)
                    for value in x[i, start : start + 16 * RUN]:
                        xc = load(value) - middle
                        first += xc
                        second += xc * xc
                    totals[i // channels, 0, i % channels] += first
                    totals[i // channels, 1, i % channels] += second
        return totals

    return _parallel(by_planes if planes else by_rows)


def moments(x_NCS: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`steadynorm.ops.reference.moments`."""
    kernel, count = _moments_kernel(*_kind(x_NCS)), x_NCS.numel() // x_NCS.shape[1]
    x, mean = _flat(x_NCS), torch.zeros(x_NCS.shape[1], dtype=torch.float32)
    with _threads() as blocks:
        for _ in range(2):  # about zero, which gives the mean; about the mean, which gives the variance
            first, second = torch.from_numpy(kernel(x, mean.numpy(), blocks)).sum(0) / count
            mean = (mean + first).float()
    return mean, (second - first.square()).clamp(min=0).float()


def transform(
    x_NCS: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
) -> Tensor:
    """As :func:`steadynorm.ops.reference.transform`."""
    y_NCS = torch.empty_like(x_NCS)
    kernel = _transform_kernel(*_kind(x_NCS), activation)
    residual = _flat_like(residual_NCS, x_NCS)
    with _threads() as blocks:
        kernel(_flat(x_NCS), *_numbers(center, scale, shift), residual, _flat(y_NCS), blocks)
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
    """As :func:`steadynorm.ops.reference.transform_sums`."""
    kernel = _sums_kernel(*_kind(x_NCS), activation)
    dy, residual = _flat_like(dy_NCS, x_NCS), _flat_like(residual_NCS, x_NCS)
    with _threads() as blocks:
        totals = kernel(dy, _flat(x_NCS), *_numbers(center, scale, shift), residual, blocks)
    sum_dy, sum_dy_xc = torch.from_numpy(totals.sum(0)).float()
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
    """As :func:`steadynorm.ops.reference.transform_grad`."""
    dx_NCS = torch.empty_like(x_NCS)
    d_residual_NCS = None if residual_NCS is None else torch.empty_like(x_NCS)
    kernel = _grad_kernel(*_kind(x_NCS), activation)
    dy, residual = _flat_like(dy_NCS, x_NCS), _flat_like(residual_NCS, x_NCS)
    d_residual = None if d_residual_NCS is None else _flat(d_residual_NCS)
    numbers = _numbers(center, scale, shift), _numbers(a, b, c)
    with _threads() as blocks:
        kernel(dy, _flat(x_NCS), *numbers[0], residual, *numbers[1], _flat(dx_NCS), d_residual, blocks)
    return dx_NCS, d_residual_NCS


def _is_rows(x: Tensor) -> bool:
    """Whether the channels of a position lie together; a single channel is better seen as planes."""
    return x.shape[1] > 1 and x.movedim(1, -1).is_contiguous()


def _kind(x: Tensor) -> tuple[bool, bool]:
    """Say which kernel an input takes: whether planes, and whether bfloat16."""
    return not _is_rows(x), x.dtype == torch.bfloat16


def _flat(x: Tensor) -> Array:
    """View a dense tensor as two dimensions: (N·S, C) for rows, (N·C, S) for planes."""
    x = x.detach()
    rows = x.movedim(1, -1).reshape(-1, x.shape[1]) if _is_rows(x) else x.reshape(x.shape[0] * x.shape[1], -1)
    return (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()


def _flat_like(tensor: Tensor | None, x: Tensor) -> Array | None:
    """View a tensor as ``_flat`` views x; where its layout is another one, a copy of it."""
    if tensor is None:
        return None
    if tensor.stride() != x.stride():
        tensor = torch.empty_like(x).copy_(tensor)
    return _flat(tensor)


def _numbers(*tensors: Tensor) -> list[Array]:
    return [tensor.detach().float().contiguous().numpy() for tensor in tensors]


@contextmanager
def _threads() -> Iterator[int]:
    """Use as many threads as torch does, and give the number of blocks to share out."""
    before = numba.get_num_threads()
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(torch.get_num_threads(), most))
    try:
        yield 4 * numba.get_num_threads()
    finally:
        numba.set_num_threads(before)

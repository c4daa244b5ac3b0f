"""The kernels over flat memory, compiled by Numba; ``_numba.py`` turns tensors into it.

The four, and batch norm in one call each way: the rule of ``rules/batch_norm.py`` compiled between them, because the
tensor operations of a rule take as long as a kernel does for a million numbers.
"""

from __future__ import annotations

import math

import numpy as np

from steadynorm.ops._numba_lines import Layout
from steadynorm.ops._numba_sums import Sums, measure, total_sums
from steadynorm.ops._numba_types import Activation, Array, Dtype, array, compiled, floats, inline
from steadynorm.ops._numba_write import Grad, Transform, write

__all__ = ["batch_norm", "batch_norm_grad", "grad", "moments", "sums", "transform"]


@compiled
def moments(
    dtype: Dtype,  # of tensors; numbers per channel are float32
    layout: Layout,
    size: int,  # how many numbers a tensor has
    x: int,  # the address of the input, as every tensor's
    mean: int,  # shape (C,); written
    var: int,  # likewise
    blocks: int,  # parts that the threads share
) -> None:
    """Write Σx/count and Σ(x − mean)²/count per channel."""
    channels = layout.channels
    measure(array(dtype, x, size), layout, floats(mean, channels), floats(var, channels), blocks)


@compiled
def transform(
    dtype: Dtype,
    layout: Layout,
    activation: Activation,
    size: int,
    x: int,
    numbers: int,  # center, scale and shift of every channel, shape (3, C)
    residual: int | None,  # as x
    y: int,  # as x; written
    streaming: bool,  # whether to write past the caches: only where lines end where a cache's do
    blocks: int,
) -> None:
    """Write y = activation((x − center)·scale + shift + residual)."""
    inputs = array(dtype, x, size), array(dtype, residual, size), floats(numbers, 3 * layout.channels)
    task = Transform(inputs[0], inputs[1], inputs[2], array(dtype, y, size))
    write(task, activation, layout, streaming, blocks)


@compiled
def sums(
    dtype: Dtype,
    layout: Layout,
    activation: Activation,
    size: int,
    dy: int,
    x: int,
    numbers: int,
    residual: int | None,
    sum_dy: int,  # shape (C,); written
    sum_dy_xc: int,  # likewise
    blocks: int,
) -> None:
    """Write Σdy′ and Σdy′·(x − center) per channel."""
    channels = layout.channels
    inputs = array(dtype, dy, size), array(dtype, x, size), array(dtype, residual, size)
    totals = total_sums(
        Sums(inputs[0], inputs[1], inputs[2], floats(numbers, 3 * channels)), activation, layout, blocks
    )
    first, second = floats(sum_dy, channels), floats(sum_dy_xc, channels)
    for channel in range(channels):
        first[channel], second[channel] = totals[0, channel], totals[1, channel]


@compiled
def grad(
    dtype: Dtype,
    layout: Layout,
    activation: Activation,
    size: int,
    dy: int,
    x: int,
    numbers: int,  # center, scale, shift, a, b and c of every channel, shape (6, C)
    residual: int | None,
    dx: int,  # as x; written
    d_residual: int | None,  # as x, None without a residual; written
    streaming: bool,
    blocks: int,
) -> None:
    """Write dx = a·dy′ + b·(x − center) + c and d_residual = dy′."""
    inputs = array(dtype, dy, size), array(dtype, x, size), array(dtype, residual, size)
    results = array(dtype, dx, size), array(dtype, d_residual, size)
    task = Grad(inputs[0], inputs[1], inputs[2], floats(numbers, 6 * layout.channels), results[0], results[1])
    write(task, activation, layout, streaming, blocks)


@inline
def _affine(mean: Array, var: Array, weight: Array | None, bias: Array | None, eps: float, numbers: Array) -> None:
    """Write center = mean, scale = weight/√(var + eps) and shift = bias."""
    channels = mean.size
    for channel in range(channels):
        scale = 1.0 / math.sqrt(var[channel] + eps)
        if weight is not None:
            scale *= weight[channel]
        numbers[channel] = mean[channel]
        numbers[channels + channel] = scale
        numbers[2 * channels + channel] = 0.0
        if bias is not None:
            numbers[2 * channels + channel] = bias[channel]


@inline
def _follow(running: Array | None, batch: Array, correction: float, momentum: float) -> None:
    """Write running = (1 − momentum)·running + momentum·correction·batch."""
    if running is not None:
        for channel in range(batch.size):
            running[channel] = (1.0 - momentum) * running[channel] + momentum * correction * batch[channel]


@inline
def _put_channel(target: Array | None, channel: int, value: float) -> None:
    if target is not None:
        target[channel] = value


@compiled
def batch_norm(
    dtype: Dtype,
    layout: Layout,
    activation: Activation,
    size: int,
    x: int,
    weight: int | None,  # shape (C,)
    bias: int | None,  # likewise
    eps: float,
    moments: int,  # mean and variance of every channel, shape (2, C); written
    running_mean: int | None,  # shape (C,); changed
    running_var: int | None,  # likewise
    momentum: float,  # weight of this batch in them
    residual: int | None,  # as x
    y: int,  # as x; written
    streaming: bool,
    blocks: int,
) -> None:
    """Measure the moments, let the running estimates follow, transform."""
    channels, count = layout.channels, size // layout.channels
    both, numbers = floats(moments, 2 * channels), np.empty(3 * channels, np.float32)
    mean, var = both[:channels], both[channels:]
    measure(array(dtype, x, size), layout, mean, var, blocks)
    _follow(floats(running_mean, channels), mean, 1.0, momentum)
    _follow(floats(running_var, channels), var, count / (count - 1), momentum)
    _affine(mean, var, floats(weight, channels), floats(bias, channels), eps, numbers)
    task = Transform(array(dtype, x, size), array(dtype, residual, size), numbers, array(dtype, y, size))
    write(task, activation, layout, streaming, blocks)


@compiled
def batch_norm_grad(
    dtype: Dtype,
    layout: Layout,
    activation: Activation,
    size: int,
    dy: int,
    x: int,
    weight: int | None,  # shape (C,)
    bias: int | None,  # likewise
    eps: float,
    moments: int,  # what batch_norm has written
    residual: int | None,  # as x
    dx: int,  # as x; written
    d_residual: int | None,  # likewise
    d_weight: int | None,  # shape (C,); written
    d_bias: int | None,  # likewise
    streaming: bool,
    blocks: int,
) -> None:
    """Write the gradients, where dy′ = dy·activation′(pre) and rstd = 1/√(var + eps).

    d_bias = Σdy′        d_weight = rstd·Σdy′·(x − mean)
    dx = weight·rstd·( dy′ − Σdy′/count − (x − mean)·rstd²·Σdy′·(x − mean)/count )
    """
    channels, count = layout.channels, size // layout.channels
    both, numbers = floats(moments, 2 * channels), np.empty(6 * channels, np.float32)
    mean, var = both[:channels], both[channels:]
    _affine(mean, var, floats(weight, channels), floats(bias, channels), eps, numbers)
    inputs = array(dtype, dy, size), array(dtype, x, size), array(dtype, residual, size)
    totals = total_sums(Sums(inputs[0], inputs[1], inputs[2], numbers), activation, layout, blocks)
    for channel in range(channels):
        rstd = 1.0 / math.sqrt(var[channel] + eps)
        scale = numbers[channels + channel]
        sum_dy, sum_dy_xc = totals[0, channel], totals[1, channel]
        _put_channel(floats(d_weight, channels), channel, rstd * sum_dy_xc)
        _put_channel(floats(d_bias, channels), channel, sum_dy)
        numbers[3 * channels + channel] = scale
        numbers[4 * channels + channel] = -scale * rstd * rstd * sum_dy_xc / count
        numbers[5 * channels + channel] = -scale * sum_dy / count
    task = Grad(inputs[0], inputs[1], inputs[2], numbers, array(dtype, dx, size), array(dtype, d_residual, size))
    write(task, activation, layout, streaming, blocks)

"""The kernels over flat memory, compiled by Numba; ``_numba.py`` passes them the addresses of tensors.

They are the four kernels, and normalization in one call each for forward and backward. That call compiles the rule
between the kernels, because a rule's tensor operations take as long as a kernel does for a million numbers.
"""

from __future__ import annotations

import numpy as np

from steadynorm.ops._numba_layout import Layout
from steadynorm.ops._numba_rules import (
    ChannelMoments,
    Rule,
    affine_of,
    gate_of,
    mixture,
    moment_gradients,
    reads_running,
    saved_rows,
    write_confidence_gradient,
)
from steadynorm.ops._numba_sums import Sums, measure, sample_means, total_sums
from steadynorm.ops._numba_types import Activation, Array, Dtype, array, compiled, floats, floats_if_any, inline, part
from steadynorm.ops._numba_write import Grad, Transform, write
from steadynorm.statistics.noise import MOST_SAMPLES

__all__ = ["grad", "moments", "normalize", "normalize_grad", "sums", "transform"]


@compiled
def moments(
    dtype: Dtype,  # dtype of the tensors; numbers per channel are float32
    layout: Layout,
    size: int,  # number of values of a tensor
    x: int,  # address of the input; all tensors are passed by address
    mean: int,  # shape (C,); written
    var: int,  # shape (C,); written
    blocks: int,  # parts that are distributed over the threads
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
    streaming: bool,  # whether to bypass the caches; lines must be aligned to cache lines
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
    sum_dy_xc: int,  # shape (C,); written
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
def _fill_affine(rule: Rule, moments: ChannelMoments, gate: float, weight: Array, bias: Array, numbers: Array) -> None:
    """Write center, scale = weight·factor and shift = bias + weight·offset; an empty array means none."""
    channels = moments.mean.size
    for channel in range(channels):
        center, scale, shift = affine_of(rule, moments, gate, channel)
        if weight.size > 0:
            scale *= weight[channel]
            shift *= weight[channel]
        if bias.size > 0:
            shift += bias[channel]
        numbers[channel] = center
        numbers[channels + channel] = scale
        numbers[2 * channels + channel] = shift


@inline
def _update_running(running: Array, batch: Array, correction: float, momentum: float) -> None:
    """Write running = (1 − momentum)·running + momentum·correction·batch; an empty array means none."""
    for channel in range(running.size):
        running[channel] = (1.0 - momentum) * running[channel] + momentum * correction * batch[channel]


@inline
def _put_all(target: Array, values: Array) -> None:
    for channel in range(target.size):
        target[channel] = values[channel]


@inline
def _chunk(samples: int, chunks: int, chunk: int) -> tuple[int, int]:
    """Return the first sample of a chunk and the first one after it; the first chunks are the larger ones."""
    size, larger = samples // chunks, samples % chunks
    first = chunk * size + min(chunk, larger)
    return first, first + size + (1 if chunk < larger else 0)


@inline
def _moments_of(rule: Rule, saved: Array, channels: int, chunks: int, chunk: int) -> ChannelMoments:
    """View the moments of a chunk in the saved rows, in the order of :func:`saved_rows`."""
    at = 0 if chunks == 1 else 2 + (2 if reads_running(rule) else 0) + 2 * chunk
    return ChannelMoments(
        saved[at * channels : (at + 1) * channels],
        saved[(at + 1) * channels : (at + 2) * channels],
        saved[2 * channels : 3 * channels],
        saved[3 * channels : 4 * channels],
    )


@inline
def _merge_chunks(saved: Array, rule: Rule, channels: int, samples: int, chunks: int) -> None:
    """Write the moments of the whole batch, pooled from the chunks."""
    for channel in range(channels):
        mean, var = 0.0, 0.0
        for chunk in range(chunks):
            moments, (first, last) = _moments_of(rule, saved, channels, chunks, chunk), _chunk(samples, chunks, chunk)
            share = (last - first) / last  # of all samples so far
            mean, var = mixture(mean, var, float(moments.mean[channel]), float(moments.var[channel]), share)
        saved[channel], saved[channels + channel] = mean, var


@inline
def _copy(source: Array, target: Array) -> None:
    for i in range(source.size):
        target[i] = source[i]


@compiled
def _update_noise(
    noise: Array | None, momentum: float, x: Array, layout: Layout, moments: ChannelMoments, samples: int
) -> None:
    """Update the noise of one sample, as ``statistics/noise.py`` does."""
    if noise is None:
        return
    channels = layout.channels
    picked = min(MOST_SAMPLES, samples)
    numbers = np.zeros(3 * channels, np.float32)
    _copy(moments.mean, numbers[:channels])
    apart = sample_means(x, layout, numbers, samples, picked)
    ratio, told = 0.0, 0
    for channel in range(channels):
        if moments.var[channel] != 0:
            mean, square = 0.0, 0.0
            for k in range(picked):
                mean += apart[k, channel] / picked
            for k in range(picked):
                square += (apart[k, channel] - mean) ** 2
            ratio += square / (picked - 1) / moments.var[channel]
            told += 1
    seen = ratio / told if told else 1.0
    if np.isfinite(seen):
        noise[0] = (1.0 - momentum) * noise[0] + momentum * seen


@compiled
def normalize(
    dtype: Dtype,
    layout: Layout,
    activation: Activation,
    rule: Rule,
    samples: int,  # N; with several chunks, samples are contiguous
    chunks: int,  # parts of the batch, each normalized by its own moments
    size: int,
    x: int,
    weight: int,  # shape (C,); 0 for none
    bias: int,  # shape (C,); 0 for none
    running_mean: int,  # shape (C,), 0 for none; updated
    running_var: int,  # shape (C,), 0 for none; updated
    momentum: float,  # weight of this batch in the running statistics
    noise: int | None,  # one number; updated
    noise_momentum: float,  # weight of this batch in the noise
    saved: int,  # shape (rows, C): moments of the batch, running ones as the rule reads them, each chunk's; written
    residual: int | None,  # as x
    y: int,  # as x; written
    streaming: bool,
    blocks: int,
) -> None:
    """Measure the moments, apply the rule and transform, chunk by chunk; then update the running statistics."""
    channels, per_sample = layout.channels, size // samples
    inputs = array(dtype, x, size), array(dtype, residual, size), array(dtype, y, size)
    rows, numbers = floats(saved, saved_rows(rule, chunks) * channels), np.empty(3 * channels, np.float32)
    if reads_running(rule):
        _copy(floats_if_any(running_mean, channels), rows[2 * channels :])
        _copy(floats_if_any(running_var, channels), rows[3 * channels :])
    for chunk in range(chunks):
        first, last = _chunk(samples, chunks, chunk)
        first, last = first * per_sample, last * per_sample
        moments = _moments_of(rule, rows, channels, chunks, chunk)
        measure(inputs[0][first:last], layout, moments.mean, moments.var, blocks)
        gate, _ = gate_of(rule, moments)
        _fill_affine(rule, moments, gate, floats_if_any(weight, channels), floats_if_any(bias, channels), numbers)
        task = Transform(inputs[0][first:last], part(inputs[1], first, last), numbers, inputs[2][first:last])
        write(task, activation, layout, streaming, blocks)
    if chunks > 1:
        _merge_chunks(rows, rule, channels, samples, chunks)
    whole, count = _moments_of(rule, rows, channels, 1, 0), size // channels
    _update_noise(floats(noise, 1), noise_momentum, inputs[0], layout, whole, samples)
    if momentum != 0.0:
        _update_running(floats_if_any(running_mean, channels), whole.mean, 1.0, momentum)
        _update_running(floats_if_any(running_var, channels), whole.var, count / (count - 1), momentum)


@inline
def _fill_gradient(
    rule: Rule, moments: ChannelMoments, weight: Array, totals: Array, count: int, sums: Array, numbers: Array
) -> tuple[float, float, float]:
    """Write a, b and c of dx = a·dy′ + b·(x − center) + c; add d_weight and d_bias to ``sums``.

    Returns:
        the gate, the ratio that it was computed from, and the gradient with respect to the gate.
    """
    channels = moments.mean.size
    gate, ratio = gate_of(rule, moments)
    d_gate = 0.0
    for channel in range(channels):
        center, factor, offset = affine_of(rule, moments, gate, channel)
        gamma = weight[channel] if weight.size > 0 else 1.0
        sum_dy, sum_dy_xc = totals[0, channel], totals[1, channel]
        sums[0, channel] += factor * sum_dy_xc
        if offset != 0.0:
            sums[0, channel] += offset * sum_dy
        sums[1, channel] += sum_dy
        d_mean, d_var, d_gate_here = moment_gradients(
            rule, moments, gate, channel, factor, -gamma * factor * sum_dy, gamma * sum_dy_xc
        )
        d_gate += d_gate_here
        numbers[3 * channels + channel] = gamma * factor
        numbers[4 * channels + channel] = 2.0 * d_var / count
        numbers[5 * channels + channel] = d_mean / count
        if center != moments.mean[channel]:
            numbers[5 * channels + channel] += 2.0 * d_var / count * (center - moments.mean[channel])
    return gate, ratio, d_gate


@compiled
def normalize_grad(
    dtype: Dtype,
    layout: Layout,
    activation: Activation,
    rule: Rule,
    samples: int,
    chunks: int,
    size: int,
    dy: int,
    x: int,
    weight: int,  # shape (C,); 0 for none
    bias: int,  # shape (C,); 0 for none
    saved: int,  # as normalize wrote it
    residual: int | None,  # as x
    dx: int,  # as x; written
    d_residual: int | None,  # as x, None without a residual; written
    d_weight: int,  # shape (C,), 0 for none; written
    d_bias: int,  # shape (C,), 0 for none; written
    d_rule: int,  # shape (3,), gradient with respect to the gate's confidence, 0 for none; written
    streaming: bool,
    blocks: int,
) -> None:
    """Write the gradients, chunk by chunk, with dy′ = dy·activation′(pre).

    d_bias = Σdy′        d_weight = factor·Σdy′·(x − center) + offset·Σdy′
    dx = scale·dy′ + 2·d_var/count·(x − mean) + d_mean/count
    """
    channels, per_sample = layout.channels, size // samples
    inputs = array(dtype, dy, size), array(dtype, x, size), array(dtype, residual, size)
    results = array(dtype, dx, size), array(dtype, d_residual, size)
    rows, numbers = floats(saved, saved_rows(rule, chunks) * channels), np.empty(6 * channels, np.float32)
    sums = np.zeros((2, channels))
    for chunk in range(chunks):
        first, last = _chunk(samples, chunks, chunk)
        first, last = first * per_sample, last * per_sample
        moments = _moments_of(rule, rows, channels, chunks, chunk)
        parts = inputs[0][first:last], inputs[1][first:last], part(inputs[2], first, last)
        gate, _ = gate_of(rule, moments)
        _fill_affine(rule, moments, gate, floats_if_any(weight, channels), floats_if_any(bias, channels), numbers)
        totals = total_sums(Sums(parts[0], parts[1], parts[2], numbers), activation, layout, blocks)
        gate, ratio, d_gate = _fill_gradient(
            rule, moments, floats_if_any(weight, channels), totals, (last - first) // channels, sums, numbers
        )
        write_confidence_gradient(rule, gate, ratio, d_gate, floats_if_any(d_rule, 3))
        task = Grad(parts[0], parts[1], parts[2], numbers, results[0][first:last], part(results[1], first, last))
        write(task, activation, layout, streaming, blocks)
    _put_all(floats_if_any(d_weight, channels), sums[0])
    _put_all(floats_if_any(d_bias, channels), sums[1])

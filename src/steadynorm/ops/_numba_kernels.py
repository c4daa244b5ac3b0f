"""The kernels over flat memory, compiled by Numba; ``_numba.py`` turns tensors into it.

The four, and normalization in one call each way: a rule compiled between them, because the tensor operations of a rule
take as long as a kernel does for a million numbers.
"""

from __future__ import annotations

import numpy as np

from steadynorm.ops._numba_lines import Layout
from steadynorm.ops._numba_rules import Known, Rule, gate_gradient, kept_rows, stored_rows, terms, to_moments, weigh
from steadynorm.ops._numba_sums import Sums, measure, sample_means, total_sums
from steadynorm.ops._numba_types import Activation, Array, Dtype, array, compiled, floats, inline, part
from steadynorm.ops._numba_write import Grad, Transform, write
from steadynorm.statistics.noise import MOST_SAMPLES

__all__ = ["grad", "moments", "normalize", "normalize_grad", "sums", "transform"]


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
def _fill_affine(
    rule: Rule, known: Known, gate: float, weight: Array | None, bias: Array | None, numbers: Array
) -> None:
    """Write center, scale = weight·factor and shift = bias + weight·offset."""
    channels = known.mean.size
    for channel in range(channels):
        center, scale, shift = terms(rule, known, gate, channel)
        if weight is not None:
            scale *= weight[channel]
            shift *= weight[channel]
        if bias is not None:
            shift += bias[channel]
        numbers[channel] = center
        numbers[channels + channel] = scale
        numbers[2 * channels + channel] = shift


@inline
def _follow(running: Array | None, batch: Array, correction: float, momentum: float) -> None:
    """Write running = (1 − momentum)·running + momentum·correction·batch."""
    if running is not None:
        for channel in range(batch.size):
            running[channel] = (1.0 - momentum) * running[channel] + momentum * correction * batch[channel]


@inline
def _put_all(target: Array | None, values: Array) -> None:
    if target is not None:
        for channel in range(target.size):
            target[channel] = values[channel]


@inline
def _chunk(samples: int, chunks: int, chunk: int) -> tuple[int, int]:
    """Give the first sample of a chunk and the first behind it; the first chunks are the larger ones."""
    size, larger = samples // chunks, samples % chunks
    first = chunk * size + min(chunk, larger)
    return first, first + size + (1 if chunk < larger else 0)


@inline
def _known(rule: Rule, kept: Array, channels: int, chunks: int, chunk: int) -> Known:
    """Find what is known of a chunk among the kept rows: those of the batch, of the rule, of each chunk if several."""
    at = 0 if chunks == 1 else 2 + stored_rows(rule) + 2 * chunk
    return Known(
        kept[at * channels : (at + 1) * channels],
        kept[(at + 1) * channels : (at + 2) * channels],
        kept[2 * channels : 3 * channels],
        kept[3 * channels : 4 * channels],
    )


@inline
def _pool(kept: Array, rule: Rule, channels: int, samples: int, chunks: int) -> None:
    """Write the moments of all chunks together: Σcount·mean/Σcount, and with them Σcount·(var + (mean − their mean)²).

    Source: Chan, Golub & LeVeque 1983.
    """
    for channel in range(channels):
        mean, var = 0.0, 0.0
        for chunk in range(chunks):
            known, (first, last) = _known(rule, kept, channels, chunks, chunk), _chunk(samples, chunks, chunk)
            mean += known.mean[channel] * ((last - first) / samples)
        for chunk in range(chunks):
            known, (first, last) = _known(rule, kept, channels, chunks, chunk), _chunk(samples, chunks, chunk)
            apart = known.mean[channel] - mean
            var += (known.var[channel] + apart * apart) * ((last - first) / samples)
        kept[channel], kept[channels + channel] = mean, var


@inline
def _copy(source: Array | None, target: Array) -> None:
    if source is not None:
        for i in range(source.size):
            target[i] = source[i]


@compiled
def _follow_noise(noise: Array | None, momentum: float, x: Array, layout: Layout, known: Known, samples: int) -> None:
    """Let the noise of one sample follow, as ``statistics/noise.py`` says."""
    if noise is None:
        return
    channels = layout.channels
    picked = min(MOST_SAMPLES, samples)
    numbers = np.zeros(3 * channels, np.float32)
    _copy(known.mean, numbers[:channels])
    apart = sample_means(x, layout, numbers, samples, picked)
    ratio, told = 0.0, 0
    for channel in range(channels):
        if known.var[channel] != 0:
            mean, square = 0.0, 0.0
            for k in range(picked):
                mean += apart[k, channel] / picked
            for k in range(picked):
                square += (apart[k, channel] - mean) ** 2
            ratio += square / (picked - 1) / known.var[channel]
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
    samples: int,  # which lie one behind the other where there are chunks
    chunks: int,  # parts of the batch that are normalized each by itself; 1 where estimates follow
    size: int,
    x: int,
    weight: int | None,  # shape (C,)
    bias: int | None,  # likewise
    running_mean: int | None,  # likewise; for rules that look at it, and changed
    running_var: int | None,  # likewise
    momentum: float,  # weight of this batch in them
    noise: int | None,  # one number; changed
    noise_momentum: float,  # weight of this batch in it
    kept: int,  # shape (rows, C): moments of the batch, running ones as the rule sees them, each chunk's; written
    residual: int | None,  # as x
    y: int,  # as x; written
    streaming: bool,
    blocks: int,
) -> None:
    """Measure the moments, apply the rule and transform, chunk by chunk; let the running estimates follow."""
    channels, per_sample = layout.channels, size // samples
    inputs = array(dtype, x, size), array(dtype, residual, size), array(dtype, y, size)
    rows, numbers = floats(kept, kept_rows(rule, chunks) * channels), np.empty(3 * channels, np.float32)
    if stored_rows(rule):
        _copy(floats(running_mean, channels), rows[2 * channels :])
        _copy(floats(running_var, channels), rows[3 * channels :])
    for chunk in range(chunks):
        first, last = _chunk(samples, chunks, chunk)
        first, last = first * per_sample, last * per_sample
        known = _known(rule, rows, channels, chunks, chunk)
        measure(inputs[0][first:last], layout, known.mean, known.var, blocks)
        gate, _ = weigh(rule, known)
        _fill_affine(rule, known, gate, floats(weight, channels), floats(bias, channels), numbers)
        task = Transform(inputs[0][first:last], part(inputs[1], first, last), numbers, inputs[2][first:last])
        write(task, activation, layout, streaming, blocks)
    if chunks > 1:
        _pool(rows, rule, channels, samples, chunks)
    whole, count = _known(rule, rows, channels, 1, 0), size // channels
    _follow_noise(floats(noise, 1), noise_momentum, inputs[0], layout, whole, samples)
    if momentum != 0.0:
        _follow(floats(running_mean, channels), whole.mean, 1.0, momentum)
        _follow(floats(running_var, channels), whole.var, count / (count - 1), momentum)


@inline
def _fill_gradient(
    rule: Rule, known: Known, weight: Array | None, totals: Array, count: int, sums: Array, numbers: Array
) -> tuple[float, float, float]:
    """Write a, b and c of dx = a·dy′ + b·(x − center) + c; add to the sums, which are Σd_weight and Σd_bias.

    Returns:
        gate, what it was computed from, and the gradient with respect to it.
    """
    channels = known.mean.size
    gate, ratio = weigh(rule, known)
    d_gate = 0.0
    for channel in range(channels):
        center, factor, offset = terms(rule, known, gate, channel)
        gamma = 1.0 if weight is None else weight[channel]
        sum_dy, sum_dy_xc = totals[0, channel], totals[1, channel]
        sums[0, channel] += factor * sum_dy_xc
        if offset != 0.0:
            sums[0, channel] += offset * sum_dy
        sums[1, channel] += sum_dy
        d_mean, d_var, d_gate_here = to_moments(
            rule, known, gate, channel, factor, -gamma * factor * sum_dy, gamma * sum_dy_xc
        )
        d_gate += d_gate_here
        numbers[3 * channels + channel] = gamma * factor
        numbers[4 * channels + channel] = 2.0 * d_var / count
        numbers[5 * channels + channel] = d_mean / count
        if center != known.mean[channel]:
            numbers[5 * channels + channel] += 2.0 * d_var / count * (center - known.mean[channel])
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
    weight: int | None,  # shape (C,)
    bias: int | None,  # likewise
    kept: int,  # what normalize has written
    residual: int | None,  # as x
    dx: int,  # as x; written
    d_residual: int | None,  # likewise
    d_weight: int | None,  # shape (C,); written
    d_bias: int | None,  # likewise
    d_rule: int | None,  # shape (3,), gradients with respect to the gate's confidence; written
    streaming: bool,
    blocks: int,
) -> None:
    """Write the gradients, where dy′ = dy·activation′(pre), chunk by chunk.

    d_bias = Σdy′        d_weight = factor·Σdy′·(x − center) + offset·Σdy′
    dx = scale·dy′ + 2·d_var/count·(x − mean) + d_mean/count
    """
    channels, per_sample = layout.channels, size // samples
    inputs = array(dtype, dy, size), array(dtype, x, size), array(dtype, residual, size)
    results = array(dtype, dx, size), array(dtype, d_residual, size)
    rows, numbers = floats(kept, kept_rows(rule, chunks) * channels), np.empty(6 * channels, np.float32)
    sums = np.zeros((2, channels))
    for chunk in range(chunks):
        first, last = _chunk(samples, chunks, chunk)
        first, last = first * per_sample, last * per_sample
        known = _known(rule, rows, channels, chunks, chunk)
        parts = inputs[0][first:last], inputs[1][first:last], part(inputs[2], first, last)
        gate, _ = weigh(rule, known)
        _fill_affine(rule, known, gate, floats(weight, channels), floats(bias, channels), numbers)
        totals = total_sums(Sums(parts[0], parts[1], parts[2], numbers), activation, layout, blocks)
        gate, ratio, d_gate = _fill_gradient(
            rule, known, floats(weight, channels), totals, (last - first) // channels, sums, numbers
        )
        gate_gradient(rule, gate, ratio, d_gate, floats(d_rule, 3))
        task = Grad(parts[0], parts[1], parts[2], numbers, results[0][first:last], part(results[1], first, last))
        write(task, activation, layout, streaming, blocks)
    _put_all(floats(d_weight, channels), sums[0])
    _put_all(floats(d_bias, channels), sums[1])

"""The four kernels on the CPU: float32, bfloat16 and float16 of any strides, each in one pass over the data.

Signatures and meaning are those of ``reference.py``. A dense tensor is read in place, for any order of its
dimensions. A tensor with gaps or overlaps (a slice, an expanded tensor) is copied once, and so is a gradient or a
residual whose strides differ from those of x. Arithmetic is float32.
"""

from __future__ import annotations

import logging
import math
import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch
from numba.core import event
from torch import Tensor

from steadynorm.ops import _numba_kernels as kernels
from steadynorm.ops import _numba_types as kinds
from steadynorm.ops._layout import like
from steadynorm.ops._numba_layout import Layout, Planes, Rows
from steadynorm.ops._numba_operands import check_rule, check_stored
from steadynorm.ops._numba_rules import Rule
from steadynorm.ops._numba_simd import LANES, has_feature
from steadynorm.ops._numba_threads import is_forked, run, start
from steadynorm.ops._operands import address, address_or_0, check_numbers, check_operands
from steadynorm.ops.reference import LEAKY_SLOPE, Activation

__all__ = [
    "moments",
    "normalize",
    "normalize_grad",
    "start",
    "transform",
    "transform_grad",
    "transform_sums",
    "unsupported_reason",
]

STREAM = 8 << 20
"""Bytes from which a result bypasses the caches: they would evict it before it is read again."""
_ACTIVATIONS: dict[Activation | None, Any] = {
    None: kinds.Identity(),
    "relu": kinds.Relu(),
    "leaky_relu": kinds.LeakyRelu(LEAKY_SLOPE),
    "silu": kinds.Silu(),
}
_NONE: Mapping[str, Any] = {}
_DTYPES: dict[torch.dtype, kinds.Dtype] = {
    torch.float32: kinds.Float32(),
    torch.bfloat16: kinds.BFloat16(),
    torch.float16: kinds.Float16(),
}


class _SayOnce(event.Listener):  # type: ignore[misc]
    """Announce the first compilation, which takes a while: on a new machine, or for a new kind of tensor.

    At a terminal the message is a warning, elsewhere it has level INFO.
    """

    said = False

    def on_start(self, event: Any) -> None:  # noqa: ANN401 (numba's events)
        """Announce our own kernels only."""
        if not self.said and event.data["dispatcher"].py_func.__module__ == kernels.__name__:
            self.said = True
            is_seen = sys.stderr is not None and sys.stderr.isatty()
            logging.getLogger("steadynorm").log(
                logging.WARNING if is_seen else logging.INFO,
                "compiling the CPU kernels for this machine: ten seconds or more, once; they are kept on disk. "
                "Run steadynorm warmup to compile them beforehand.",
            )

    def on_end(self, event: Any) -> None:  # noqa: ANN401 (as above)
        """Do nothing."""


event.register("numba:compile", _SayOnce())


def unsupported_reason(x: Tensor, *others: Tensor | None) -> str | None:
    """Return why these kernels cannot take the tensors; None if they can."""
    if is_forked():
        return "the process was forked from one that had loaded the kernels, and does not have their threads"
    return _misfit(x, *others)


def _misfit(x: Tensor, *others: Tensor | None) -> str | None:
    if not x.is_cpu or x.layout != torch.strided:
        return "it is not a dense tensor in the memory of the CPU"
    if x.dtype not in _DTYPES:
        return f"{x.dtype} is not float32, bfloat16 or float16"
    if x.dtype == torch.float16 and not _converts_float16():
        return "the processor has no instructions for float16"
    for other in others:
        if other is not None and other.dtype != x.dtype:
            return "the tensors differ in dtype"
    if x.dim() < 2 or x.numel() == 0:
        return "it is empty or has no channels"
    return None


def _check(
    where: str, x: Tensor, beside: Mapping[str, Tensor | None] = _NONE, per_channel: Mapping[str, Tensor] = _NONE
) -> None:
    """Raise ValueError unless a kernel can read the memory of the tensors."""
    check_operands(where, x, _misfit(x, *beside.values()), beside, per_channel)


def moments(x_NCS: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`steadynorm.ops.reference.moments`."""
    _check("moments", x_NCS)
    x_NCS, layout = _laid_out(x_NCS)
    mean, var = torch.empty(layout.channels, dtype=torch.float32), torch.empty(layout.channels, dtype=torch.float32)
    run(
        kernels.moments,
        _DTYPES[x_NCS.dtype],
        layout,
        x_NCS.numel(),
        address(x_NCS),
        address(mean),
        address(var),
    )
    return mean, var


def transform(
    x_NCS: Tensor,
    center: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
) -> Tensor:
    """See :func:`steadynorm.ops.reference.transform`."""
    _check("transform", x_NCS, {"residual": residual_NCS}, {"center": center, "scale": scale, "shift": shift})
    x_NCS, layout = _laid_out(x_NCS)
    residual_NCS, together, y_NCS = like(residual_NCS, x_NCS), _together(center, scale, shift), torch.empty_like(x_NCS)
    run(
        kernels.transform,
        _DTYPES[x_NCS.dtype],
        layout,
        _ACTIVATIONS[activation],
        x_NCS.numel(),
        address(x_NCS),
        address(together),
        address(residual_NCS),
        address(y_NCS),
        _streams(layout, y_NCS),
    )
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
    """See :func:`steadynorm.ops.reference.transform_sums`."""
    numbers = {"center": center, "scale": scale, "shift": shift}
    _check("transform_sums", x_NCS, {"dy": dy_NCS, "residual": residual_NCS}, numbers)
    x_NCS, layout = _laid_out(x_NCS)
    dy_NCS, residual_NCS = like(dy_NCS, x_NCS), like(residual_NCS, x_NCS)
    together = _together(center, scale, shift)
    sum_dy, sum_dy_xc = (torch.empty(layout.channels, dtype=torch.float32) for _ in range(2))
    run(
        kernels.sums,
        _DTYPES[x_NCS.dtype],
        layout,
        _ACTIVATIONS[activation],
        x_NCS.numel(),
        address(dy_NCS),
        address(x_NCS),
        address(together),
        address(residual_NCS),
        address(sum_dy),
        address(sum_dy_xc),
    )
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
    """See :func:`steadynorm.ops.reference.transform_grad`."""
    numbers = {"center": center, "scale": scale, "shift": shift, "a": a, "b": b, "c": c}
    _check("transform_grad", x_NCS, {"dy": dy_NCS, "residual": residual_NCS}, numbers)
    x_NCS, layout = _laid_out(x_NCS)
    dy_NCS, residual_NCS = like(dy_NCS, x_NCS), like(residual_NCS, x_NCS)
    together, dx_NCS = _together(center, scale, shift, a, b, c), torch.empty_like(x_NCS)
    d_residual_NCS = None if residual_NCS is None else torch.empty_like(x_NCS)
    run(
        kernels.grad,
        _DTYPES[x_NCS.dtype],
        layout,
        _ACTIVATIONS[activation],
        x_NCS.numel(),
        address(dy_NCS),
        address(x_NCS),
        address(together),
        address(residual_NCS),
        address(dx_NCS),
        address(d_residual_NCS),
        _streams(layout, dx_NCS, d_residual_NCS),
    )
    return dx_NCS, d_residual_NCS


def normalize(
    x_NCS: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
    rule: Rule,
    chunks: int,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    noise: Tensor | None,
    noise_momentum: float,
    saved: Tensor,
) -> Tensor:
    """Normalize a batch in one call: moments, rule, running statistics, transform.

    Args:
        x_NCS: the input, as for :func:`transform`.
        residual_NCS: shape and dtype of x, or None for none.
        activation: ``relu``, ``leaky_relu`` (slope 0.01), ``silu`` or None.
        rule: the compiled rule; for one value per channel, one that supports it.
        chunks: parts of the batch, as :func:`torch.tensor_split` makes them, each normalized by its own moments. With
            several chunks, or with noise, x is contiguous or channels-last.
        weight: float32, shape (C,), contiguous; None counts as 1.
        bias: float32, shape (C,), contiguous; None counts as 0.
        running_mean: float32, shape (C,), contiguous, or None; read by some rules, then updated in place.
        running_var: as running_mean; updated with the unbiased variance.
        momentum: weight of this batch in the running statistics; 0 leaves them unchanged, and is required for one value
            per channel.
        noise: float32, one value, updated in place; None for none.
        noise_momentum: weight of this batch in the noise.
        saved: written, the input of :func:`normalize_grad`: float32, contiguous, C columns, and the number of rows that
            :func:`steadynorm.ops._numba_rules.saved_rows` returns. The rows are mean and biased variance of the batch;
            running mean and variance as the rule read them, if it reads them; mean and variance of each chunk, if
            there are several.

    Returns:
        y in the shape, dtype and memory format of x.
    """
    _check("normalize", x_NCS, {"residual": residual_NCS})
    check_rule("normalize", x_NCS, rule, chunks, saved, {"weight": weight, "bias": bias})
    check_stored(x_NCS, rule, chunks, {"running_mean": running_mean, "running_var": running_var}, momentum, noise)
    x_NCS, layout = _laid_out(x_NCS)
    residual_NCS, y_NCS = like(residual_NCS, x_NCS), torch.empty_like(x_NCS)
    assert y_NCS.stride() == x_NCS.stride(), (y_NCS.stride(), x_NCS.stride())
    run(
        kernels.normalize,
        _DTYPES[x_NCS.dtype],
        layout,
        _ACTIVATIONS[activation],
        rule,
        len(x_NCS),
        chunks,
        x_NCS.numel(),
        address(x_NCS),
        address_or_0(weight),
        address_or_0(bias),
        address_or_0(running_mean),
        address_or_0(running_var),
        momentum,
        address(noise),
        noise_momentum,
        address(saved),
        address(residual_NCS),
        address(y_NCS),
        _streams(layout, y_NCS),
    )
    return y_NCS


def normalize_grad(
    dy_NCS: Tensor,
    x_NCS: Tensor,
    residual_NCS: Tensor | None,
    activation: Activation | None,
    rule: Rule,
    chunks: int,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    confidence: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Differentiate :func:`normalize` in one call: sums, the rule's gradient, the transform's.

    Args:
        dy_NCS: gradient of y, in the dtype of x.
        saved: as :func:`normalize` wrote it; the other arguments are those of ``normalize``.
        confidence: the gate's confidence, float32, shape (3,), to be differentiated; None for none.

    Returns:
        dx; d_residual, None without a residual; d_weight, d_bias and d_confidence, each None without its parameter.
    """
    _check("normalize_grad", x_NCS, {"dy": dy_NCS, "residual": residual_NCS})
    check_rule("normalize_grad", x_NCS, rule, chunks, saved, {"weight": weight, "bias": bias})
    if confidence is not None:
        check_numbers("normalize_grad", (3,), {"confidence": confidence})
    x_NCS, layout = _laid_out(x_NCS)
    dy_NCS, residual_NCS, dx_NCS = like(dy_NCS, x_NCS), like(residual_NCS, x_NCS), torch.empty_like(x_NCS)
    d_residual_NCS = None if residual_NCS is None else torch.empty_like(x_NCS)
    d_weight, d_bias, d_confidence = (
        None if parameter is None else torch.empty_like(parameter) for parameter in (weight, bias, confidence)
    )
    run(
        kernels.normalize_grad,
        _DTYPES[x_NCS.dtype],
        layout,
        _ACTIVATIONS[activation],
        rule,
        len(x_NCS),
        chunks,
        x_NCS.numel(),
        address(dy_NCS),
        address(x_NCS),
        address_or_0(weight),
        address_or_0(bias),
        address(saved),
        address(residual_NCS),
        address(dx_NCS),
        address(d_residual_NCS),
        address_or_0(d_weight),
        address_or_0(d_bias),
        address_or_0(d_confidence),
        _streams(layout, dx_NCS, d_residual_NCS),
    )
    return dx_NCS, d_residual_NCS, d_weight, d_bias, d_confidence


def _converts_float16() -> bool:
    return platform.machine() not in ("x86_64", "AMD64") or has_feature("f16c")


def _laid_out(x: Tensor) -> tuple[Tensor, Layout]:
    """Return x and its layout, rows or planes; a copy of x if it has gaps or overlaps or its negation is lazy."""
    inner = None if x.is_neg() else _inner(x)
    if inner is None:
        x = torch.empty_like(x).copy_(x)
        inner = _inner(x)
        assert inner is not None, x.stride()
    channels = x.shape[1]
    return x, (Rows(channels, channels) if inner == 1 else Planes(channels, inner))


def _inner(x: Tensor) -> int | None:
    """Count the values of a channel that are adjacent in memory; None if x has gaps or overlaps."""
    if x.is_contiguous():
        return math.prod(x.shape[2:])
    if x.dim() == 4 and x.shape[1] > 1 and x.is_contiguous(memory_format=torch.channels_last):
        return 1
    expected, inner, above = 1, 1, False
    for stride, size, dim in sorted((x.stride(dim), x.shape[dim], dim) for dim in range(x.dim()) if x.shape[dim] > 1):
        if stride != expected:
            return None
        expected *= size
        above = above or dim == 1
        inner *= 1 if above else size
    return inner


def _together(*per_channel: Tensor) -> Tensor:
    """Concatenate numbers per channel, as float32."""
    together = torch.cat(per_channel)
    return together if together.dtype == torch.float32 else together.float()


def _streams(layout: Layout, *results: Tensor | None) -> bool:
    """Whether results bypass the caches, which needs lines that are aligned to cache lines."""
    for result in results:
        # A view of a large tensor is evicted from the caches as the whole tensor is.
        if result is not None and (result.untyped_storage().nbytes() < STREAM or result.data_ptr() % 64):
            return False
    return layout.columns % LANES == 0

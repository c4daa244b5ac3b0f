"""The four kernels on the CPU: float32, bfloat16 and float16 of any strides, one pass over the data each.

Signatures and meaning are those of ``reference.py``. A dense tensor is read where it lies, whatever the order of its
dimensions; one with gaps or overlaps (a slice, an expanded tensor) is copied once, and so is a gradient or a residual
that does not lie as x does. Arithmetic is float32.
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
"""Bytes from which a result is written past the caches: it would have left them before it is read again."""
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
    """Say that compiling takes a while: it happens at the first call on a machine, or of another kind of tensor.

    Who works at a terminal sees it; elsewhere it is a message of level INFO.
    """

    said = False

    def on_start(self, event: Any) -> None:  # noqa: ANN401 (numba's events)
        """Speak of our own kernels only."""
        if not self.said and event.data["dispatcher"].py_func.__module__ == kernels.__name__:
            self.said = True
            is_seen = sys.stderr is not None and sys.stderr.isatty()
            logging.getLogger("steadynorm").log(
                logging.WARNING if is_seen else logging.INFO,
                "compiling the CPU kernels for this machine: ten seconds or more, once; they are kept on disk. "
                "steadynorm warmup does it beforehand.",
            )

    def on_end(self, event: Any) -> None:  # noqa: ANN401 (as above)
        """Say nothing."""


event.register("numba:compile", _SayOnce())


def unsupported_reason(x: Tensor, *others: Tensor | None) -> str | None:
    """Say why these kernels cannot take such tensors; None where they can."""
    if is_forked():
        return "the process was forked from one that had loaded the kernels, whose threads it does not have"
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
    """Raise unless a kernel can walk the memory of such tensors."""
    check_operands(where, x, _misfit(x, *beside.values()), beside, per_channel)


def moments(x_NCS: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`steadynorm.ops.reference.moments`."""
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
    """As :func:`steadynorm.ops.reference.transform`."""
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
    """As :func:`steadynorm.ops.reference.transform_sums`."""
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
    """As :func:`steadynorm.ops.reference.transform_grad`."""
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
        x_NCS: as the four kernels take it.
        residual_NCS: likewise.
        activation: likewise.
        rule: with one value per channel, one that can do with it.
        chunks: parts of the batch that are normalized each by itself, those of :func:`torch.tensor_split`. Where there
            are several, or there is noise, x is contiguous or channels-last.
        weight: float32, shape (C,), contiguous; None counts as 1.
        bias: likewise; None counts as 0.
        running_mean: what the rule reads beside the batch, as weight; then updated in place. None where there is
            none.
        running_var: likewise; it follows by the unbiased variance.
        momentum: weight of this batch in them; 0 leaves them as they are, and must be 0 for one value per channel.
        noise: float32, one value, which follows in place; None where there is none.
        noise_momentum: weight of this batch in it.
        saved: written, what :func:`normalize_grad` wants to know: float32, contiguous, with C columns and as many rows
            as :func:`steadynorm.ops._numba_rules.saved_rows` says. They are mean and biased variance of the batch;
            running mean and variance, as a rule that looks at them has seen them; mean and variance of each chunk,
            where there are several.

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
        saved: what ``normalize`` has written; the other arguments are as there.
        confidence: of the gate, float32, shape (3,), whose gradient is wanted; None where there is none.

    Returns:
        dx; d_residual, None without a residual; d_weight, d_bias and d_confidence, None where there is none.
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
    """Give x and how the kernels read it, by rows or by planes; a copy where it has gaps, overlaps or other signs."""
    inner = None if x.is_neg() else _inner(x)
    if inner is None:
        x = torch.empty_like(x).copy_(x)
        inner = _inner(x)
        assert inner is not None, x.stride()
    channels = x.shape[1]
    return x, (Rows(channels, channels) if inner == 1 else Planes(channels, inner))


def _inner(x: Tensor) -> int | None:
    """Count the values of a channel that lie together in memory; None where x has gaps or overlaps."""
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
    """Put numbers per channel one after the other."""
    together = torch.cat(per_channel)
    return together if together.dtype == torch.float32 else together.float()


def _streams(layout: Layout, *results: Tensor | None) -> bool:
    """Whether to write results past the caches, which needs lines that end where a cache's do."""
    for result in results:
        # A part of a large tensor is as little to be found in the caches later as the whole.
        if result is not None and (result.untyped_storage().nbytes() < STREAM or result.data_ptr() % 64):
            return False
    return layout.columns % LANES == 0

"""Argument types of the CPU kernels: memory, dtypes and activations.

Numba compiles one version per combination of argument types. It chooses the implementation when it compiles, at no cost
when the code runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numba import carray, njit
from numba.core.types import none
from numba.extending import overload

from steadynorm.ops._numba_cache import keep_compiled
from steadynorm.ops._numba_simd import fill, pointer_to, power_of_two, where

__all__ = [
    "Activation",
    "Array",
    "BFloat16",
    "Dtype",
    "Float16",
    "Float32",
    "Identity",
    "LeakyRelu",
    "Relu",
    "Silu",
    "Type",
    "Vector",
    "activate",
    "activation_backward",
    "array",
    "choose",
    "choose_inline",
    "compiled",
    "exp",
    "floats",
    "floats_if_any",
    "inline",
    "parallel",
    "part",
]

Array = np.ndarray[Any, Any]
Vector = Any
"""Sixteen float32 numbers; see ``_numba_simd.py``."""
Type = Any
"""Numba's type of an argument when it compiles."""


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:  # noqa: ANN401 (numba's options)
    """Compile a function at its first call, and keep its code on disk."""
    result: Callable[..., Any] = njit(nogil=True, error_model="numpy", **options)(function)
    keep_compiled(result)
    return result


# Only prange loops become parallel: every other loop would cost a second of compilation.
_LOOPS_AS_WRITTEN = dict.fromkeys(("comprehension", "reduction", "inplace_binop", "setitem", "numpy", "stencil"), False)
parallel = partial(compiled, parallel={"prange": True, "fusion": False, **_LOOPS_AS_WRITTEN})
inline: Callable[..., Any] = njit(forceinline=True, error_model="numpy")
# Implementations are chosen by Numba's types, which differ from the annotations.
choose: Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]] = partial(overload, strict=False)
choose_inline = partial(choose, jit_options={"forceinline": True, "error_model": "numpy"})


class Float32(NamedTuple):
    """Numbers are float32."""


class BFloat16(NamedTuple):
    """Numbers are bfloat16."""


class Float16(NamedTuple):
    """Numbers are float16."""


Dtype = Float32 | BFloat16 | Float16
_FLOAT32 = Float32()


class Identity(NamedTuple):
    """No activation."""


class Relu(NamedTuple):
    """ReLU: 0 if pre ≤ 0, else pre."""


class LeakyRelu(NamedTuple):
    """Leaky ReLU: pre if pre > 0, else slope·pre."""

    slope: float


class Silu(NamedTuple):
    """SiLU: pre·sigmoid(pre)."""


Activation = Identity | Relu | LeakyRelu | Silu


def array(dtype: Dtype, address: int | None, size: int) -> Any:  # noqa: ANN401 (an array, or None)
    """View memory as float32 numbers, or as the bits of 16-bit ones."""
    raise NotImplementedError


@choose_inline(array)
def _array_of(dtype: Type, address: Type, size: Type) -> Callable[..., Any]:
    if address in (none, none.__class__):
        return lambda dtype, address, size: None
    bits = {Float32: np.float32, BFloat16: np.uint16, Float16: np.int16}[dtype.instance_class]
    return lambda dtype, address, size: carray(pointer_to(address), size, bits)


def floats(address: int | None, size: int) -> Any:  # noqa: ANN401 (as above)
    """View memory as float32 numbers."""
    raise NotImplementedError


@choose_inline(floats)
def _floats_of(address: Type, size: Type) -> Callable[..., Any]:
    return lambda address, size: array(_FLOAT32, address, size)


@inline
def floats_if_any(address: int, size: int) -> Array:
    """View memory as float32 numbers; address 0 gives an empty array, so that one compiled version serves both."""
    numbers: Array = floats(address, size if address != 0 else 0)
    return numbers


def part(numbers: Array | None, first: int, last: int) -> Any:  # noqa: ANN401 (as above)
    """View a slice of the numbers; None for None."""
    raise NotImplementedError


@choose_inline(part)
def _part_of(numbers: Type, first: Type, last: Type) -> Callable[..., Any]:
    if numbers in (none, none.__class__):
        return lambda numbers, first, last: None
    return lambda numbers, first, last: numbers[first:last]


def activate(activation: Activation, pre: Vector) -> Vector:
    """Compute activation(pre), as torch does at 0 and NaN."""
    raise NotImplementedError


@choose_inline(activate)
def _activation(activation: Type, pre: Type) -> Callable[..., Any]:
    implementations: dict[type, Callable[..., Any]] = {
        Identity: lambda activation, pre: pre,
        Relu: lambda activation, pre: where(pre <= fill(0.0), fill(0.0), pre),
        LeakyRelu: lambda activation, pre: where(pre > fill(0.0), pre, pre * fill(activation.slope)),
        Silu: lambda activation, pre: pre / (fill(1.0) + exp(fill(0.0) - pre)),
    }
    return implementations[activation.instance_class]


def activation_backward(activation: Activation, dy: Vector, pre: Vector) -> Vector:
    """Compute dy′ = dy·activation′(pre)."""
    raise NotImplementedError


@choose_inline(activation_backward)
def _derivative(activation: Type, dy: Type, pre: Type) -> Callable[..., Any]:
    implementations: dict[type, Callable[..., Any]] = {
        Identity: lambda activation, dy, pre: dy,
        Relu: lambda activation, dy, pre: where(pre <= fill(0.0), fill(0.0), dy),
        LeakyRelu: lambda activation, dy, pre: where(pre > fill(0.0), dy, dy * fill(activation.slope)),
        Silu: lambda activation, dy, pre: _silu_backward(dy, pre),
    }
    return implementations[activation.instance_class]


@inline
def _silu_backward(dy: Vector, pre: Vector) -> Vector:
    sigmoid = fill(1.0) / (fill(1.0) + exp(fill(0.0) - pre))
    return dy * sigmoid * (fill(1.0) + pre * (fill(1.0) - sigmoid))


@inline
def exp(x: Vector) -> Vector:
    """Compute the exponential by the polynomial of Cephes's expf (Moshier), with x = k·ln(2) + r.

    Below −87 it returns exp(−87), which is negligible beside 1.
    """
    within = where(x > fill(-87.0), x, fill(-87.0))
    within = where(within <= fill(89.0), within, fill(89.0))
    shifted = within * fill(1.44269504) + fill(12582912.0)  # a float32 above 1.5·2²³ is an integer
    k = shifted - fill(12582912.0)
    r = (within - k * fill(0.693359375)) - k * fill(-2.12194440e-4)  # ln(2) as the sum of two numbers
    p = fill(1.9875691500e-4) * r + fill(1.3981999507e-3)
    p = p * r + fill(8.3334519073e-3)
    p = p * r + fill(4.1665795894e-2)
    p = p * r + fill(1.6666665459e-1)
    p = p * r + fill(5.0000001201e-1)
    result = (p * (r * r) + r + fill(1.0)) * power_of_two(k)
    return where(x <= fill(89.0), result, x * fill(3e38))  # infinity; NaN stays NaN

"""The vector type of the CPU kernels: sixteen float32 numbers as one Numba value.

A loop over ``Lanes`` is vector code as written, on every processor; it does not depend on how the optimiser treats a
scalar loop. ``Lanes`` take one AVX-512 register, two of AVX or four of NEON. Tensors are flat arrays of float32, uint16
(the bits of bfloat16) or int16 (the bits of float16); reads widen to float32, writes round to nearest even.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.core.typing import signature
from numba.core.typing.templates import ConcreteTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

__all__ = [
    "LANES",
    "drain",
    "fill",
    "has_feature",
    "keep",
    "load",
    "load_some",
    "pointer_to",
    "power_of_two",
    "store",
    "store_some",
    "stream",
    "total",
    "where",
]

LANES = 16

# Numba's protocols pass objects of its compiler, which have no type annotations.
Code = Any
Typing = tuple[Any, Callable[[Any, Any, Any, Any], Any]]


_intrinsic: Callable[[Callable[..., Typing]], Callable[..., Any]] = intrinsic


class _BFloat(ir.types._BaseFloatType):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not name."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


_BFloat._create_instance()

FLOATS = ir.VectorType(ir.FloatType(), LANES)
FLOAT16S, BFLOATS = ir.VectorType(ir.HalfType(), LANES), ir.VectorType(_BFloat(), LANES)
WORDS, HALVES = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.IntType(16), LANES)
BITS = ir.VectorType(ir.IntType(1), LANES)


def has_feature(name: str) -> bool:
    """Whether the processor that Numba compiles for has an instruction set, given by its LLVM name."""
    features: str = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return f"+{name}" in features.split(",")


class _Vector(types.Type):  # type: ignore[misc]
    """A Numba type that is one LLVM vector."""


lanes, mask = _Vector("Lanes"), _Vector("Mask")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Code, vector: _Vector) -> None:
        super().__init__(manager, vector, FLOATS if vector == lanes else BITS)


def _define(function: Callable[..., Any], result: _Vector, emit: Callable[[Code, Code, Code], Code]) -> None:
    """Define a binary operator on Lanes."""

    @infer_global(function)
    class _Signature(ConcreteTemplate):  # type: ignore[misc]
        cases = [signature(result, lanes, lanes)]  # noqa: RUF012 (numba's protocol)

    @lower_builtin(function, lanes, lanes)  # type: ignore[untyped-decorator]
    def _lower(context: Code, builder: Code, signature: Code, arguments: Code) -> Code:
        return emit(builder, *arguments)


def _arithmetic(name: str) -> Callable[[Code, Code, Code], Code]:
    # "contract" alone: a product and a sum may fuse into one instruction; nothing is reordered, NaN stays NaN.
    return lambda builder, a, b: getattr(builder, name)(a, b, flags=("contract",))


for _operators, _name in (
    ((operator.add, operator.iadd), "fadd"),
    ((operator.sub, operator.isub), "fsub"),
    ((operator.mul, operator.imul), "fmul"),
    ((operator.truediv, operator.itruediv), "fdiv"),
):
    for _operator in _operators:
        _define(_operator, lanes, _arithmetic(_name))
_define(operator.gt, mask, lambda builder, a, b: builder.fcmp_ordered(">", a, b))
_define(operator.le, mask, lambda builder, a, b: builder.fcmp_ordered("<=", a, b))


@_intrinsic
def pointer_to(typing: Code, address: Code) -> Typing:
    """Convert an integer address to a pointer."""

    def emit(context: Code, builder: Code, signature: Code, arguments: Code) -> Code:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), emit


@_intrinsic
def fill(typing: Code, number: Code) -> Typing:
    """Broadcast one number to all lanes."""

    def emit(context: Code, builder: Code, signature: Code, arguments: Code) -> Code:
        return _splat(builder, context.cast(builder, arguments[0], signature.args[0], types.float32), FLOATS)

    return lanes(number), emit


@_intrinsic
def where(typing: Code, condition: Code, yes: Code, no: Code) -> Typing:
    """Select ``yes`` in the lanes where the condition holds, else ``no``."""
    return lanes(mask, lanes, lanes), lambda context, builder, signature, arguments: builder.select(*arguments)


@_intrinsic
def keep(typing: Code, values: Code, count: Code) -> Typing:
    """Keep the first ``count`` lanes and set the others to 0."""

    def emit(context: Code, builder: Code, signature: Code, arguments: Code) -> Code:
        return builder.select(_first(builder, arguments[1]), arguments[0], ir.Constant(FLOATS, None))

    return lanes(lanes, types.intp), emit


@_intrinsic
def power_of_two(typing: Code, exponent: Code) -> Typing:
    """Compute 2**exponent for integers from −126 to 128; 128 gives infinity."""

    def emit(context: Code, builder: Code, signature: Code, arguments: Code) -> Code:
        biased = builder.add(builder.fptosi(arguments[0], WORDS), _constant(WORDS, 127))
        return builder.bitcast(builder.shl(biased, _constant(WORDS, 23)), FLOATS)

    return lanes(lanes), emit


@_intrinsic
def total(typing: Code, values: Code) -> Typing:
    """Sum the lanes, as a float32."""

    def emit(context: Code, builder: Code, signature: Code, arguments: Code) -> Code:
        function = _llvm(builder, f"llvm.vector.reduce.fadd.v{LANES}f32", ir.FloatType(), [ir.FloatType(), FLOATS])
        # Sum in pairs: 4 steps instead of 16.
        return builder.call(function, [ir.Constant(ir.FloatType(), -0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(lanes), emit


@_intrinsic
def load(typing: Code, array: Code, at: Code) -> Typing:
    """Read sixteen numbers from position ``at``."""

    def emit(context: Code, builder: Code, signature: Code, arguments: Code) -> Code:
        dtype = signature.args[0].dtype
        return _widen(
            builder, dtype, builder.load(_pointer(context, builder, signature, arguments), align=_size(dtype))
        )

    return lanes(array, types.intp), emit


@_intrinsic
def load_some(typing: Code, array: Code, at: Code, count: Code) -> Typing:
    """Read the first ``count`` of sixteen numbers; the other lanes are 0 and their memory is not touched."""

    def emit(context: Code, builder: Code, signature: Code, arguments: Code) -> Code:
        dtype, pointer = signature.args[0].dtype, _pointer(context, builder, signature, arguments)
        raw = _stored(dtype)
        parameters = [pointer.type, ir.IntType(32), BITS, raw]
        function = _llvm(builder, f"llvm.masked.load.v{LANES}{_letter(dtype)}.p0", raw, parameters)
        few, nothing = _first(builder, arguments[2]), ir.Constant(raw, None)
        return _widen(builder, dtype, builder.call(function, [pointer, _align(dtype), few, nothing]))

    return lanes(array, types.intp, types.intp), emit


@_intrinsic
def store(typing: Code, array: Code, at: Code, values: Code) -> Typing:
    """Write sixteen numbers to position ``at``."""

    def emit(context: Code, builder: Code, signature: Code, arguments: Code) -> None:
        dtype, pointer = signature.args[0].dtype, _pointer(context, builder, signature, arguments)
        builder.store(_narrow(builder, dtype, arguments[2]), pointer, align=_size(dtype))

    return types.void(array, types.intp, lanes), emit


@_intrinsic
def stream(typing: Code, array: Code, at: Code, values: Code) -> Typing:
    """Write sixteen numbers past the caches, to an address aligned to their size; ``drain`` must follow."""

    def emit(context: Code, builder: Code, signature: Code, arguments: Code) -> None:
        dtype, pointer = signature.args[0].dtype, _pointer(context, builder, signature, arguments)
        values = _as_integers(builder, _narrow(builder, dtype, arguments[2]))
        write = builder.store(values, pointer, align=LANES * _size(dtype))
        write.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))

    return types.void(array, types.intp, lanes), emit


@_intrinsic
def drain(typing: Code) -> Typing:
    """Make streamed writes visible to other threads."""

    def emit(context: Code, builder: Code, signature: Code, arguments: Code) -> Code:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), emit


@_intrinsic
def store_some(typing: Code, array: Code, at: Code, values: Code, count: Code) -> Typing:
    """Write the first ``count`` of sixteen numbers."""

    def emit(context: Code, builder: Code, signature: Code, arguments: Code) -> None:
        dtype, pointer = signature.args[0].dtype, _pointer(context, builder, signature, arguments)
        parameters = [_stored(dtype), pointer.type, ir.IntType(32), BITS]
        function = _llvm(builder, f"llvm.masked.store.v{LANES}{_letter(dtype)}.p0", ir.VoidType(), parameters)
        few = _first(builder, arguments[3])
        builder.call(function, [_narrow(builder, dtype, arguments[2]), pointer, _align(dtype), few])

    return types.void(array, types.intp, lanes, types.intp), emit


def _widen(builder: Code, dtype: Code, raw: Code) -> Code:
    if dtype == types.float32:
        return raw
    if dtype == types.int16:
        return builder.fpext(builder.bitcast(raw, FLOAT16S), FLOATS)
    return builder.bitcast(builder.shl(builder.zext(raw, WORDS), _constant(WORDS, 16)), FLOATS)


def _narrow(builder: Code, dtype: Code, values: Code) -> Code:
    if dtype == types.float32:
        return values
    if dtype == types.int16:
        return builder.bitcast(builder.fptrunc(values, FLOAT16S), HALVES)
    if has_feature("avx512bf16"):  # one instruction; on other processors LLVM calls a missing function
        return builder.bitcast(builder.fptrunc(values, BFLOATS), HALVES)
    bits = builder.bitcast(values, WORDS)
    odd = builder.and_(builder.lshr(bits, _constant(WORDS, 16)), _constant(WORDS, 1))
    rounded = builder.lshr(builder.add(builder.add(bits, _constant(WORDS, 0x7FFF)), odd), _constant(WORDS, 16))
    no_number = builder.fcmp_unordered("uno", values, values)
    return builder.trunc(builder.select(no_number, _constant(WORDS, 0x7FC0), rounded), HALVES)


def _as_integers(builder: Code, values: Code) -> Code:
    """Hide from LLVM that 16-bit values were floats: it has no streaming store for them and drops the hint."""
    if values.type != HALVES or not has_feature("avx"):
        return values
    same = ir.InlineAsm(ir.FunctionType(HALVES, [HALVES]), "", "=x,0", side_effect=False)
    return builder.call(same, [values])


def _pointer(context: Code, builder: Code, signature: Code, arguments: Code) -> Code:
    array = signature.args[0]
    data = context.make_array(array)(context, builder, arguments[0]).data
    return builder.bitcast(builder.gep(data, [arguments[1]]), _stored(array.dtype).as_pointer())


def _stored(dtype: Code) -> Code:
    return FLOATS if dtype == types.float32 else HALVES


def _size(dtype: Code) -> int:
    bits: int = dtype.bitwidth
    return bits // 8


def _letter(dtype: Code) -> str:
    return "f32" if dtype == types.float32 else "i16"


def _align(dtype: Code) -> Code:
    return ir.Constant(ir.IntType(32), _size(dtype))


def _constant(vector: Code, number: int) -> Code:
    return ir.Constant(vector, [number] * LANES)


def _splat(builder: Code, scalar: Code, vector: Code) -> Code:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(WORDS, None))


def _first(builder: Code, count: Code) -> Code:
    """Build the mask of the first ``count`` lanes."""
    numbered = ir.Constant(WORDS, list(range(LANES)))
    return builder.icmp_signed("<", numbered, _splat(builder, builder.trunc(count, ir.IntType(32)), WORDS))


def _llvm(builder: Code, name: str, result: Code, parameters: list[Code]) -> Code:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, parameters), name)

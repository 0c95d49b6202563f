"""Vectors of 16 lanes as first-class Numba values, and typed access to raw addresses.

Addresses are int64 byte addresses. Every operation lowers to plain LLVM vector IR, which LLVM splits
to the width of the target (zmm, two ymm, four xmm); only the int8 dot product names a target instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

from ..ops import ELEMENT_BYTES as ELEMENT_BYTES
from .features import host_features

FEATURES = host_features()


class _BFloatType(ir.types.HalfType):  # type: ignore[misc]  # llvmlite has no name for LLVM's bfloat
    def __str__(self) -> str:
        return "bfloat"


I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
_BFloatType._create_instance()
BF16 = _BFloatType()
V16F32, V16I32 = ir.VectorType(F32, 16), ir.VectorType(I32, 16)
V16I16, V16F16, V16I8 = ir.VectorType(I16, 16), ir.VectorType(F16, 16), ir.VectorType(I8, 16)
V64I8, V32I16 = ir.VectorType(I8, 64), ir.VectorType(I16, 32)

# Reassociation and contraction are allowed; NaN and infinity keep their meaning.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}


class _VectorType(types.Type):
    def __init__(self, name: str, llvm_type: ir.Type) -> None:
        self.llvm_type = llvm_type
        super().__init__(name=name)


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _VectorType) -> None:
        super().__init__(manager, vector, vector.llvm_type)


v16f32 = _VectorType("v16f32", V16F32)
addr, index, f32, i32 = types.int64, types.int64, types.float32, types.int32

Emit = Callable[..., Any]


def op(result: Any, *arguments: Any) -> Callable[[Emit], Any]:
    """Turns `emit(builder, *values) -> value` into a Numba intrinsic with a fixed signature."""

    def decorate(emit: Emit) -> Any:
        def typer(typing_context: Any, *actual: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                value = emit(builder, *values)
                return context.get_dummy_value() if value is None else value

            return result(*arguments), codegen

        names = ", ".join(f"a{i}" for i in range(len(arguments)))
        namespace: dict[str, Any] = {"typer": typer}
        # numba wants the arity in the signature of the typing function
        exec(f"def {emit.__name__}(context, {names}): return typer(context, {names})", namespace)
        function = namespace[emit.__name__]
        function.__doc__ = emit.__doc__
        return intrinsic(function)

    return decorate


# ---- pieces of IR shared by the emitters


def const(vector: ir.VectorType, value: float | int) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def const_i64(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def declare(builder: Any, name: str, result: ir.Type, arguments: list[ir.Type]) -> Any:
    existing = builder.module.globals.get(name)
    return existing or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def call(builder: Any, name: str, result: ir.Type, *values: Any) -> Any:
    return builder.call(declare(builder, name, result, [v.type for v in values]), values)


def pointer(builder: Any, address: Any, llvm_type: ir.Type, offset: Any = 0) -> Any:
    """A loop over a variable offset can be vectorised by LLVM, one over the address cannot."""
    if not isinstance(offset, int):
        base = builder.inttoptr(address, I8.as_pointer())
        return builder.bitcast(builder.gep(base, [offset]), llvm_type.as_pointer())
    if offset:
        address = builder.add(address, ir.Constant(I64, offset))
    return builder.inttoptr(address, llvm_type.as_pointer())


def load(builder: Any, address: Any, llvm_type: ir.Type, offset: Any = 0) -> Any:
    value = builder.load(pointer(builder, address, llvm_type, offset))
    value.align = 1
    return value


def store(builder: Any, value: Any, address: Any, offset: Any = 0) -> None:
    builder.store(value, pointer(builder, address, value.type, offset)).align = 1


def splat(builder: Any, scalar: Any, lanes: int = 16) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    vector = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(vector, undefined, const(ir.VectorType(I32, lanes), 0))


def opaque(builder: Any, value: Any) -> Any:
    """A constant vector that LLVM cannot see: it would make three other instructions of one permutation."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=v,0", [value], False)


def fmadd(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, fused where the target can."""
    return call(builder, "llvm.fmuladd.v16f32", V16F32, a, b, c)


def vmax(builder: Any, a: Any, b: Any) -> Any:
    """The larger; b where either is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def vmin(builder: Any, a: Any, b: Any) -> Any:
    """The smaller; b where either is NaN."""
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


def round_even(builder: Any, x: Any) -> Any:
    """Nearest integer, ties to even. (Adding and subtracting 1.5 * 2^23 would not survive `reassoc`.)"""
    return call(builder, "llvm.rint.v16f32", V16F32, x)


def sum_lanes(builder: Any, v: Any) -> Any:
    fn = declare(builder, "llvm.vector.reduce.fadd.v16f32", F32, [F32, V16F32])
    return builder.call(fn, [ir.Constant(F32, -0.0), v], fastmath=("reassoc",))


def max_lanes(builder: Any, v: Any) -> Any:
    """The largest lane. LLVM's own reduction goes lane by lane, since it must tell NaNs from numbers."""
    for size in (8, 4, 2, 1):
        kind, undefined = ir.VectorType(I32, size), ir.Constant(v.type, ir.Undefined)
        lanes = [ir.Constant(kind, list(range(first, first + size))) for first in (0, size)]
        v = vmax(builder, *(builder.shuffle_vector(v, undefined, half) for half in lanes))
    return builder.extract_element(v, ir.Constant(I32, 0))


def sums_of(builder: Any, vectors: list[Any]) -> Any:
    """The sums of 16 vectors <16 x float>, that of the first in lane 0."""
    owners = [[i] * 16 for i in range(16)]  # whose parts a lane holds
    for size in (16, 8, 4, 2):
        lanes = [
            [seg + i + at for seg in range(0, 16, size) for i in range(size // 2)] for at in (0, size // 2)
        ]
        halves = [ir.Constant(V16I32, own + [16 + i for i in own]) for own in lanes]
        pairs = [(i, i + len(vectors) // 2) for i in range(len(vectors) // 2)]
        owners = [[owners[k][i] for k in pair for i in lanes[0]] for pair in pairs]
        vectors = [
            builder.fadd(*(builder.shuffle_vector(vectors[i], vectors[j], half) for half in halves))
            for i, j in pairs
        ]
    (total,), (owner,) = vectors, owners
    order = ir.Constant(V16I32, [owner.index(i) for i in range(16)])
    return builder.shuffle_vector(total, ir.Constant(V16F32, ir.Undefined), order)


def half_to_float(builder: Any, half_bits: Any) -> Any:
    """<16 x i16> bits of float16 -> <16 x float>."""
    if not FEATURES.x86 or FEATURES.f16c:
        return builder.fpext(builder.bitcast(half_bits, V16F16), V16F32)
    wide = builder.zext(half_bits, V16I32)
    sign = builder.shl(builder.and_(wide, const(V16I32, 0x8000)), const(V16I32, 16))
    magnitude = builder.shl(builder.and_(wide, const(V16I32, 0x7FFF)), const(V16I32, 13))
    scaled = builder.bitcast(
        builder.fmul(builder.bitcast(magnitude, V16F32), const(V16F32, 2.0**112)), V16I32
    )
    special = builder.icmp_unsigned(">=", magnitude, const(V16I32, 0x0F800000))
    bits = builder.select(special, builder.or_(scaled, const(V16I32, 0x7F800000)), scaled)
    return builder.bitcast(builder.or_(bits, sign), V16F32)


def float_to_half(builder: Any, v: Any) -> Any:
    """<16 x float> -> <16 x i16> bits of float16, to nearest even."""
    if not FEATURES.x86 or FEATURES.f16c:
        return builder.bitcast(builder.fptrunc(v, V16F16), V16I16)
    bits = builder.bitcast(v, V16I32)
    magnitude = builder.and_(bits, const(V16I32, 0x7FFFFFFF))
    sign = builder.lshr(builder.xor(bits, magnitude), const(V16I32, 16))
    nan = builder.icmp_unsigned(">", magnitude, const(V16I32, 0x7F800000))
    large = builder.select(nan, const(V16I32, 0x7E00), const(V16I32, 0x7C00))
    denormal = builder.fadd(builder.bitcast(magnitude, V16F32), const(V16F32, 0.5))
    small = builder.sub(builder.bitcast(denormal, V16I32), const(V16I32, 0x3F000000))
    odd = builder.and_(builder.lshr(magnitude, const(V16I32, 13)), const(V16I32, 1))
    biased = builder.add(builder.add(magnitude, const(V16I32, 0xC8000FFF)), odd)
    normal = builder.lshr(biased, const(V16I32, 13))
    result = builder.select(builder.icmp_unsigned("<", magnitude, const(V16I32, 0x38800000)), small, normal)
    result = builder.select(builder.icmp_unsigned(">=", magnitude, const(V16I32, 0x47800000)), large, result)
    return builder.trunc(builder.or_(result, sign), V16I16)


def bfloat_to_float(builder: Any, bfloat_bits: Any) -> Any:
    """<16 x i16> bits of bfloat16 -> <16 x float>."""
    wide = builder.shl(builder.zext(bfloat_bits, V16I32), const(V16I32, 16))
    return builder.bitcast(wide, V16F32)


def float_to_bfloat(builder: Any, v: Any) -> Any:
    """<16 x float> -> <16 x i16> bits of bfloat16, to nearest even; NaN stays NaN."""
    bits = builder.bitcast(v, V16I32)
    odd = builder.and_(builder.lshr(bits, const(V16I32, 16)), const(V16I32, 1))
    rounded = builder.add(bits, builder.add(odd, const(V16I32, 0x7FFF)))
    quiet = builder.or_(bits, const(V16I32, 0x00400000))
    result = builder.select(builder.fcmp_unordered("uno", v, v), quiet, rounded)
    return builder.trunc(builder.lshr(result, const(V16I32, 16)), V16I16)


def load_floats(builder: Any, kind: str, address: Any, offset: Any = 0) -> Any:
    """16 numbers of kind "f32", "f16" or "bf16" -> <16 x float>."""
    if kind == "f32":
        return load(builder, address, V16F32, offset)
    widen = half_to_float if kind == "f16" else bfloat_to_float
    return widen(builder, load(builder, address, V16I16, offset))


def store_floats(builder: Any, kind: str, value: Any, address: Any, offset: Any = 0) -> None:
    """<16 x float> -> 16 numbers of kind "f32", "f16" or "bf16"."""
    if kind != "f32":
        value = (float_to_half if kind == "f16" else float_to_bfloat)(builder, value)
    store(builder, value, address, offset)


def emit_prefetch(builder: Any, address: Any, ahead: int, n_bytes: int, level: int = 2) -> None:
    """Asks for the cache lines `ahead` bytes behind the n_bytes at the address, into the cache of that level;
    any address is allowed. A stream is read faster through the second, which waits for more lines at once.
    """
    fn = declare(builder, "llvm.prefetch.p0", ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    read, locality, data = (ir.Constant(I32, flag) for flag in (0, 4 - level, 1))
    for line in range(0, n_bytes, 64):
        target = builder.add(address, const_i64(ahead + line))
        builder.call(fn, [builder.inttoptr(target, I8.as_pointer()), read, locality, data])


def exponential(builder: Any, v: Any) -> Any:
    """e^x by range reduction and a degree-6 polynomial, 5.4e-8 relative; clamped to [-87.3, 88]."""
    x = vmin(builder, const(V16F32, 88.0), vmax(builder, const(V16F32, -87.3), v))
    n = round_even(builder, builder.fmul(x, const(V16F32, 1.44269504088896341)))
    r = fmadd(builder, n, const(V16F32, -0.693145751953125), x)
    r = fmadd(builder, n, const(V16F32, -1.42860682030941723212e-6), r)
    p = const(V16F32, 1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fmadd(builder, p, r, const(V16F32, c))
    y = builder.fadd(fmadd(builder, builder.fmul(r, r), p, r), const(V16F32, 1.0))
    exponent = builder.shl(builder.fptosi(n, V16I32), const(V16I32, 23))
    return builder.bitcast(builder.add(builder.bitcast(y, V16I32), exponent), V16F32)


def logarithm(builder: Any, x: Any) -> Any:
    """The natural logarithm of normal numbers above 0, 1e-6 absolute: exponent, 2 artanh of the mantissa."""
    bits, one = builder.bitcast(x, V16I32), const(V16F32, 1.0)
    exponent = builder.sitofp(builder.sub(builder.ashr(bits, const(V16I32, 23)), const(V16I32, 127)), V16F32)
    mantissa = builder.or_(builder.and_(bits, const(V16I32, 0x7FFFFF)), const(V16I32, 0x3F800000))
    m = builder.bitcast(mantissa, V16F32)
    t = builder.fdiv(builder.fsub(m, one), builder.fadd(m, one))
    square = builder.fmul(t, t)
    series = const(V16F32, 1 / 11)
    for n in (9, 7, 5, 3, 1):
        series = fmadd(builder, series, square, const(V16F32, 1 / n))
    return fmadd(
        builder, exponent, const(V16F32, 0.6931471805599453), builder.fmul(builder.fadd(t, t), series)
    )


def silu(builder: Any, x: Any) -> Any:
    """x / (1 + e^-x)."""
    e = exponential(builder, builder.fsub(const(V16F32, 0.0), x))
    return builder.fdiv(x, builder.fadd(const(V16F32, 1.0), e))

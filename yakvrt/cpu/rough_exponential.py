"""Powers of two for weights that become bfloat16 anyway."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from . import simd
from .simd import (
    BF16,
    FEATURES,
    I16,
    I32,
    V16F32,
    V16I16,
    V16I32,
    V32I16,
    addr,
    const,
    f32,
    fmadd,
    op,
    v16f32,
)

# of 2^f, 0 <= f < 1, highest power first: 7.5e-5 relative at most, found by reweighted least squares
POLYNOMIAL = (0.0780244918, 0.2260671995, 0.6958335253, 0.9999252193)
V32BF16 = ir.VectorType(BF16, 32)
FLOOR, AS_SET = 1, 4  # how the fraction is taken; how everything else is rounded


def _power(b: Any, x: Any) -> Any:
    if FEATURES.avx512:
        own = ir.Constant(V16F32, ir.Undefined), ir.Constant(I16, -1), ir.Constant(I32, AS_SET)
        floor = ir.Constant(I32, FLOOR)
        f = simd.call(b, "llvm.x86.avx512.mask.reduce.ps.512", V16F32, x, floor, *own)
    else:
        whole = simd.call(b, "llvm.floor.v16f32", V16F32, x)
        f = b.fsub(x, whole)
    power = const(V16F32, POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        power = fmadd(b, power, f, const(V16F32, coefficient))
    if FEATURES.avx512:
        return simd.call(b, "llvm.x86.avx512.mask.scalef.ps.512", V16F32, power, x, *own)
    exponent = b.shl(b.fptosi(whole, V16I32), const(V16I32, 23))
    return b.bitcast(b.add(b.bitcast(power, V16I32), exponent), V16F32)


@op(v16f32, v16f32)
def rough_exp2(b: Any, x: Any) -> Any:
    """2^x for x <= 0; below -126 as there."""
    return _power(b, simd.vmax(b, x, const(V16F32, -126.0)))


@op(v16f32, v16f32)
def normal_exp2(b: Any, x: Any) -> Any:
    """2^x, -126 <= x <= 0."""
    return _power(b, x)


@op(f32, f32)
def scalar_exp2(b: Any, x: Any) -> Any:
    """As rough_exp2."""
    lanes = simd.vmax(b, simd.splat(b, x), const(V16F32, -126.0))
    return b.extract_element(_power(b, lanes), ir.Constant(I32, 0))


@op(types.void, addr, v16f32, v16f32)
def store_bf16_pair(b: Any, p: Any, first: Any, second: Any) -> None:
    """32 numbers as bfloat16; needs AVX512-BF16 to be fast."""
    simd.store(b, b.bitcast(_bf16_pair(b, first, second), V32I16), p)


def _bf16_pair(b: Any, first: Any, second: Any) -> Any:
    lanes = ir.Constant(ir.VectorType(I32, 32), list(range(32)))
    return b.fptrunc(b.shuffle_vector(first, second, lanes), V32BF16)


@op(v16f32, addr, v16f32, v16f32, v16f32)
def put_weights(b: Any, p: Any, first: Any, second: Any, total: Any) -> Any:
    """Stores 32 weights, normal numbers, as bfloat16, and adds what was stored to `total`, in any lanes."""
    if FEATURES.avx512_bf16:
        weights, ones = _bf16_pair(b, first, second), b.bitcast(const(V32I16, 0x3F80), V32BF16)
        simd.store(b, b.bitcast(weights, V32I16), p)
        return simd.call(b, "llvm.x86.avx512bf16.dpbf16ps.512", V16F32, total, weights, ones)
    for i, weight in enumerate((first, second)):
        bits = b.add(b.bitcast(weight, V16I32), const(V16I32, 0x8000))
        simd.store(b, b.trunc(b.lshr(bits, const(V16I32, 16)), V16I16), p, 32 * i)
        total = b.fadd(total, b.bitcast(b.and_(bits, const(V16I32, 0xFFFF0000)), V16F32))
    return total

"""Powers of two for weights that become bfloat16 anyway."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from . import simd
from .simd import (
    BF16,
    F32,
    FEATURES,
    I16,
    I32,
    V16F32,
    V16I32,
    V32I16,
    V64I8,
    addr,
    const,
    f32,
    fmadd,
    op,
    v16f32,
)

# of 2^f, 0 <= f < 1, highest power first: 7.5e-5 relative at most, found by reweighted least squares
POLYNOMIAL = (0.0780244918, 0.2260671995, 0.6958335253, 0.9999252193)
LOG2_E = 1.4426950408889634
STEPS = 128 * LOG2_E  # of the exponent of a bfloat16, in one nat
BIAS = 127 * 128  # of that exponent, in steps
IN_LOW_BITS = 1.5 * 2**23 + BIAS  # added to steps, it leaves them, biased, in the low bits of a float32
V32I32 = ir.VectorType(I32, 32)
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
    lanes = ir.Constant(V32I32, list(range(32)))
    return b.fptrunc(b.shuffle_vector(first, second, lanes), V32BF16)


@op(f32, f32)
def weight_reference(b: Any, largest: Any) -> Any:
    """What weights are made relative to: the largest logit, or a whole number of steps near it."""
    if not FEATURES.avx512_vbmi:
        return largest
    steps = simd.call(b, "llvm.rint.f32", F32, b.fmul(largest, ir.Constant(F32, STEPS)))
    return b.fmul(steps, ir.Constant(F32, 1 / STEPS))


@op(v16f32, addr, v16f32, v16f32, f32, f32, v16f32)
def put_weights(b: Any, p: Any, first: Any, second: Any, reference: Any, least: Any, total: Any) -> Any:
    """Stores what 32 logits weigh, e^max(logit - reference, least), as bfloat16, and adds what was stored to
    `total`, in any lanes. -87 < least; the reference is one of weight_reference().
    """
    to_weights = _by_steps if FEATURES.avx512_vbmi else _by_polynomial
    weights = to_weights(b, first, second, reference, least)
    simd.store(b, weights, p)
    return add_weights(b, weights, total)


def add_weights(b: Any, weights: Any, total: Any) -> Any:
    """`total` and 32 weights, bfloat16, in any lanes."""
    if FEATURES.avx512_bf16:
        weights, ones = (b.bitcast(x, V32BF16) for x in (weights, const(V32I16, 0x3F80)))
        return simd.call(b, "llvm.x86.avx512bf16.dpbf16ps.512", V16F32, total, weights, ones)
    pairs = b.bitcast(weights, V16I32)
    for bits in (b.shl(pairs, const(V16I32, 16)), b.and_(pairs, const(V16I32, 0xFFFF0000))):
        total = b.fadd(total, b.bitcast(bits, V16F32))
    return total


def low_halves(b: Any, first: Any, second: Any) -> Any:
    """Of 32 lanes of 32 bits."""
    words = [b.bitcast(x, V32I16) for x in (first, second)]
    even = simd.opaque(b, ir.Constant(V32I16, list(range(0, 64, 2))))
    return simd.call(b, "llvm.x86.avx512.vpermi2var.hi.512", V32I16, words[0], even, words[1])


def weights_of_steps(b: Any, bits: Any) -> Any:
    """What 32 exponents weigh, int16 in steps of 1 / 128, BIAS added: they are bfloat16 but for the mantissa,
    which comes from a table. Within 0.7 % of the weight; needs AVX-512 VBMI.
    """
    mantissas = [round((2 ** (i / 128) - 1) * 128) for i in range(128)]
    halves = [ir.Constant(V64I8, mantissas[i : i + 64]) for i in (0, 64)]
    bytes_of = b.bitcast(bits, V64I8)
    found = simd.call(b, "llvm.x86.avx512.vpermi2var.qi.512", V64I8, halves[0], bytes_of, halves[1])
    # one instruction each: LLVM makes more of what means the same
    joined = [b.bitcast(x, V16I32) for x in (bits, found, const(V32I16, 0x7F))]
    chosen = simd.call(b, "llvm.x86.avx512.pternlog.d.512", V16I32, *joined, ir.Constant(I32, 0xD8))
    return b.bitcast(chosen, V32I16)


def _by_steps(b: Any, first: Any, second: Any, reference: Any, least: Any) -> Any:
    scaled = b.fmul(reference, ir.Constant(F32, STEPS))
    addend = simd.splat(b, b.fsub(ir.Constant(F32, IN_LOW_BITS), scaled))
    lowest = b.fadd(ir.Constant(F32, IN_LOW_BITS), b.fmul(least, ir.Constant(F32, STEPS)))
    lowest = simd.splat(b, lowest)
    steps = [simd.vmax(b, fmadd(b, x, const(V16F32, STEPS), addend), lowest) for x in (first, second)]
    return weights_of_steps(b, low_halves(b, *steps))


def _by_polynomial(b: Any, first: Any, second: Any, reference: Any, least: Any) -> Any:
    negative = simd.splat(b, b.fmul(reference, ir.Constant(F32, -LOG2_E)))
    lowest = simd.splat(b, b.fmul(least, ir.Constant(F32, LOG2_E)))
    weights = [
        _power(b, simd.vmax(b, fmadd(b, x, const(V16F32, LOG2_E), negative), lowest)) for x in (first, second)
    ]
    if FEATURES.avx512_bf16:
        return b.bitcast(_bf16_pair(b, *weights), V32I16)
    rounded = [b.add(b.bitcast(weight, V16I32), const(V16I32, 0x8000)) for weight in weights]
    halves = [b.bitcast(bits, V32I16) for bits in rounded]
    return b.shuffle_vector(*halves, ir.Constant(V32I32, list(range(1, 64, 2))))

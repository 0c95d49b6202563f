"""32 activations -> int8 codes and their scale terms, as LLVM IR."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from . import simd
from .simd import F32, I32, I64, V16F32, V16I8, V16I32, addr, const, op


@op(types.void, addr, addr, addr, types.int64)
def quantize_block(b: Any, x: Any, codes: Any, scales: Any, scale_stride: Any) -> None:
    """32 floats at x -> 32 int8 codes and the four scale terms.

    The terms, `scale_stride` bytes apart: scale d = max|x|/127; d * sum of the 32 codes; of the first 16; of
    the last 16.
    """
    halves = [simd.load(b, x, V16F32, 64 * h) for h in (0, 1)]
    # floats without their sign are ordered as integers are, which no reduction takes lane by lane
    magnitude = [b.and_(b.bitcast(v, V16I32), const(V16I32, 0x7FFFFFFF)) for v in halves]
    umax = simd.declare(b, "llvm.vector.reduce.umax.v16i32", I32, [V16I32])
    larger = b.select(b.icmp_unsigned(">", *magnitude), *magnitude)
    largest = b.bitcast(b.call(umax, [larger]), F32)
    nonzero = b.fcmp_ordered(">", largest, ir.Constant(F32, 1e-30))
    zero_scale = ir.Constant(F32, 0.0)
    inverse = b.select(nonzero, b.fdiv(ir.Constant(F32, 127.0), largest), zero_scale)
    scale = b.fmul(largest, ir.Constant(F32, 1 / 127))
    sums = []
    for h, v in enumerate(halves):
        q = b.fptosi(simd.round_even(b, b.fmul(v, simd.splat(b, inverse))), V16I32)
        narrow = b.trunc(q, V16I8)
        simd.store(b, narrow, codes, 16 * h)
        fn = simd.declare(b, "llvm.vector.reduce.add.v16i32", I32, [V16I32])
        unsigned = b.zext(b.xor(narrow, const(V16I8, -128)), V16I32)  # such a sum is one instruction
        sums.append(b.sub(b.call(fn, [unsigned]), ir.Constant(I32, 16 * 128)))
    totals = [b.add(*sums), *sums]
    simd.store(b, scale, scales)
    for k, total in enumerate(totals):
        term = b.fmul(scale, b.sitofp(total, F32))
        simd.store(b, term, scales, b.mul(scale_stride, ir.Constant(I64, k + 1)))

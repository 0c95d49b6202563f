"""Powers of two for weights that become bfloat16 anyway."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from . import simd
from .simd import BF16, I32, V16F32, V16I32, addr, const, f32, fmadd, op, v16f32

# of 2^f on [-1/2, 1/2], highest first: the series to the fourth power, 5e-5 relative
SERIES = (0.009618129107628477, 0.05550410866482158, 0.2402265069591007, 0.6931471805599453, 1.0)


def _power(b: Any, x: Any) -> Any:
    x = simd.vmax(b, x, const(V16F32, -126.0))
    whole = simd.round_even(b, x)
    f = b.fsub(x, whole)
    power = const(V16F32, SERIES[0])
    for coefficient in SERIES[1:]:
        power = fmadd(b, power, f, const(V16F32, coefficient))
    exponent = b.shl(b.fptosi(whole, V16I32), const(V16I32, 23))
    return b.bitcast(b.add(b.bitcast(power, V16I32), exponent), V16F32)


@op(v16f32, v16f32)
def rough_exp2(b: Any, x: Any) -> Any:
    """2^x for x <= 0; below -126 as there."""
    return _power(b, x)


@op(f32, f32)
def scalar_exp2(b: Any, x: Any) -> Any:
    """As rough_exp2."""
    return b.extract_element(_power(b, simd.splat(b, x)), ir.Constant(I32, 0))


@op(types.void, addr, v16f32, v16f32)
def store_bf16_pair(b: Any, p: Any, first: Any, second: Any) -> None:
    """32 numbers as bfloat16; needs AVX512-BF16 to be fast."""
    lanes = ir.Constant(ir.VectorType(I32, 32), list(range(32)))
    both = b.shuffle_vector(first, second, lanes)
    simd.store(b, b.bitcast(b.fptrunc(both, ir.VectorType(BF16, 32)), simd.V32I16), p)

"""A row of HIGGS codes -> float32, as unrolled LLVM IR (see kernels/higgs_layout.py).

With AVX-512 the float16 grid lies in registers and is looked up by permutations, 32 codes at a time;
elsewhere points are gathered, 16 at a time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ..kernels.higgs_layout import ROW_FORMATS, GridTables
from . import simd
from .gather import gather_words
from .simd import FEATURES, I8, I32, V16F32, V16I8, V16I16, V16I32, V32I16, const, declare, load

V32I8 = ir.VectorType(I8, 32)


def _starts(n: int, width: int) -> list[int]:
    """Where runs of `width` begin that cover 0 .. n - 1; the last may overlap the one before."""
    return [*range(0, n - width, width), n - width]


def _join(builder: Any, a: Any, b: Any) -> Any:
    n = a.type.count + b.type.count
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, n), list(range(n))))


def _part(builder: Any, vector: Any, first: int, n: int) -> Any:
    lanes = ir.Constant(ir.VectorType(I32, n), list(range(first, first + n)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)


def _read_codes(builder: Any, sixes: bool, codes: Any, first: int) -> Any:
    """16 codes -> <16 x i32>."""
    if not sixes:
        return builder.zext(load(builder, codes, V16I8, first), V16I32)
    packed = load(builder, codes, ir.VectorType(I8, 12), first * 3 // 4)
    lanes = [3 * (i // 4) + j if j < 3 else 12 for i in range(16) for j in range(4)]
    spread = builder.shuffle_vector(packed, const(packed.type, 0), ir.Constant(ir.VectorType(I32, 64), lanes))
    shifts = ir.Constant(V16I32, [6 * (i % 4) for i in range(16)])
    return builder.and_(builder.lshr(builder.bitcast(spread, V16I32), shifts), const(V16I32, 63))


def _permute(builder: Any, tables: list[Any], indices: Any) -> Any:
    """Look-up in 32 * len(tables) 16-bit numbers. Shapes: indices <32 x i16> -> <32 x i16>."""
    name = "llvm.x86.avx512.vpermi2var.hi.512"
    fn = declare(builder, name, V32I16, [V32I16, V32I16, V32I16])
    found = [builder.call(fn, [a, indices, b]) for a, b in zip(tables[::2], tables[1::2], strict=True)]
    bit = 64
    while len(found) > 1:
        zero = const(V32I16, 0)
        high = builder.icmp_signed("!=", builder.and_(indices, const(V32I16, bit)), zero)
        found = [builder.select(high, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
        bit *= 2
    return found[0]


def _store_halves(builder: Any, halves: Any, scale: Any, out: Any, offset: int) -> None:
    """<32 x i16> bits of float16, times scale."""
    for h in (0, 1):
        floats = simd.half_to_float(builder, _part(builder, halves, 16 * h, 16))
        simd.store(builder, builder.fmul(floats, scale), out, offset + 64 * h)


def _emit_points(
    builder: Any,
    tables: GridTables,
    head_dim: int,
    sixes: bool,
    out: Any,
    codes: Any,
    scale: Any,
    memory: Any,
) -> None:
    """Sub-vectors of 2."""
    n_codes = head_dim // 2
    if FEATURES.avx512 and n_codes >= 32:
        planes = [
            [
                load(builder, memory, V32I16, tables.planes + 2 * (plane * tables.n_points + i))
                for i in range(0, tables.n_points, 32)
            ]
            for plane in (0, 1)
        ]
        for first in _starts(n_codes, 32):
            wide = [_read_codes(builder, sixes, codes, first + i) for i in (0, 16)]
            indices = builder.trunc(_join(builder, *wide), V32I16)
            x, y = (_permute(builder, plane, indices) for plane in planes)
            for h in (0, 1):
                lanes = [16 * h + i // 2 + 32 * (i % 2) for i in range(32)]
                pairs = builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, 32), lanes))
                _store_halves(builder, pairs, scale, out, 8 * first + 128 * h)
        return
    halves = builder.add(memory, simd.const_i64(tables.halves))
    for first in _starts(n_codes, 16):
        words = gather_words(builder, halves, _read_codes(builder, sixes, codes, first))
        _store_halves(builder, builder.bitcast(words, V32I16), scale, out, 8 * first)


def make_decode(row_format: str, head_dim: int, tables: GridTables | None) -> Any:
    """An intrinsic f(out, codes, scale, tables): float32 [D] of one row; `scale` a float32 value."""
    sixes = ROW_FORMATS[row_format].sixes

    @intrinsic
    def decode(typing_context: Any, out: Any, codes: Any, scale: Any, memory: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            out, codes, scale, memory = values
            factor = simd.splat(builder, scale)
            if tables is not None:
                _emit_points(builder, tables, head_dim, sixes, out, codes, factor, memory)
                return context.get_dummy_value()
            for i in range(0, head_dim, 16):
                if row_format == "q8":
                    raw = builder.sext(load(builder, codes, V16I8, i), V16I32)
                    value = builder.fmul(builder.sitofp(raw, V16F32), factor)
                else:
                    value = simd.bfloat_to_float(builder, load(builder, codes, V16I16, 2 * i))
                simd.store(builder, value, out, 4 * i)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.float32, types.int64), codegen

    return decode

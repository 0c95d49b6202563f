"""LLVM IR that reads codes, scales and offsets out of a weight tile (see kernels/tile_layout.py)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ..kernels.tile_layout import ROWS, TileLayout
from .simd import (
    FEATURES,
    I1,
    I8,
    I32,
    I64,
    V16F32,
    V16I8,
    V16I16,
    V16I32,
    V32I16,
    V64I8,
    const,
    declare,
    half_to_float,
    load,
)

V64I1 = ir.VectorType(I1, 64)


def _shift_bytes_right(builder: Any, v: Any, bits: int, mask: int) -> Any:
    """(v >> bits) & mask per byte; negative `bits` shift left."""
    if bits and FEATURES.avx512_gfni:
        return _shift_by_bit_matrix(builder, v, bits, mask)
    if bits:  # in 16-bit lanes, since no instruction shifts bytes
        shift = builder.lshr if bits > 0 else builder.shl
        v = builder.bitcast(shift(builder.bitcast(v, V32I16), const(V32I16, abs(bits))), V64I8)
    return builder.and_(v, const(V64I8, mask))


def _shift_by_bit_matrix(builder: Any, v: Any, bits: int, mask: int) -> Any:
    """The same in one instruction: a byte times an 8x8 matrix of bits, whose byte 7 - i makes bit i."""
    rows = [(1 << (7 - k + bits)) & 255 if mask >> (7 - k) & 1 else 0 for k in range(8)]
    fn = declare(builder, "llvm.x86.vgf2p8affineqb.512", V64I8, [V64I8, V64I8, I8])
    matrix = ir.Constant(V64I8, rows * 8)
    return builder.call(fn, [v, matrix, ir.Constant(I8, 0)])


def read_codes(builder: Any, layout: TileLayout, block: Any, group: int) -> Any:
    """The unsigned codes of columns 4*group .. 4*group+3 of 16 rows, as <64 x i8>.

    `block` is the address of a block; LLVM merges the loads that groups share.
    """
    low = layout.scale_bytes
    if layout.low_bits == 8:
        return load(builder, block, V64I8, low + 64 * group)
    if layout.low_bits == 4:
        codes = load(builder, block, V64I8, low + 64 * (group % 4))
        codes = _shift_bytes_right(builder, codes, 4 * (group // 4), 15)
    else:
        codes = load(builder, block, V64I8, low + 64 * (group // 4))
        codes = _shift_bytes_right(builder, codes, 2 * (group % 4), 3)
    high = layout.high_offset
    if layout.high_bits == 1:
        bits = builder.bitcast(load(builder, block, I64, high + 8 * group), V64I1)
        bit = const(V64I8, 1 << layout.low_bits)
        codes = builder.select(bits, builder.add(codes, bit), codes)  # one masked addition
    elif layout.high_bits == 2:
        pair = load(builder, block, V64I8, high + 64 * (group // 4))
        pair = _shift_bytes_right(builder, pair, 2 * (group % 4) - layout.low_bits, 3 << layout.low_bits)
        codes = builder.or_(codes, pair)
    return codes


def read_header(builder: Any, layout: TileLayout, superblock: Any) -> tuple[Any, ...]:
    """The float16 d (and dmin) of 16 rows of a two-level format; () for the others."""
    if not layout.two_level:
        return ()
    count = 2 if layout.has_min else 1
    return tuple(half_to_float(builder, load(builder, superblock, V16I16, 32 * i)) for i in range(count))


def read_affine(
    builder: Any, layout: TileLayout, header: tuple[Any, ...], block: Any, part: int
) -> tuple[Any, Any]:
    """(scale, offset) of 16 rows for one part of a block: weight = scale * code + offset."""
    if not layout.two_level:
        scale = half_to_float(builder, load(builder, block, V16I16))
        if layout.has_min:
            return scale, half_to_float(builder, load(builder, block, V16I16, 2 * ROWS))
        return scale, builder.fmul(scale, const(V16F32, -float(layout.zero)))
    raw = load(builder, block, V16I8, ROWS * part)
    if not layout.has_min:
        scale = builder.fmul(header[0], builder.sitofp(builder.sext(raw, V16I32), V16F32))
        return scale, builder.fmul(scale, const(V16F32, -float(layout.zero)))
    if layout.packed_min:
        wide = builder.zext(raw, V16I32)
        scale, minimum = builder.and_(wide, const(V16I32, 15)), builder.lshr(wide, const(V16I32, 4))
    else:
        scale = builder.zext(raw, V16I32)
        minimum = builder.zext(load(builder, block, V16I8, ROWS * (layout.parts + part)), V16I32)
    as_float = [builder.sitofp(v, V16F32) for v in (scale, minimum)]
    return builder.fmul(header[0], as_float[0]), builder.fneg(builder.fmul(header[1], as_float[1]))


def dot_codes(builder: Any, accumulator: Any, codes: Any, activations: Any, wide_codes: bool) -> Any:
    """accumulator[i] += sum over j < 4 of codes[4i + j] * activations[4i + j]; codes unsigned, activations
    signed.

    `wide_codes`: codes use all 8 bits; otherwise they stay below 128.
    """
    if FEATURES.avx512_vnni:
        fn = declare(builder, "llvm.x86.avx512.vpdpbusd.512", V16I32, [V16I32, V64I8, V64I8])
        return builder.call(fn, [accumulator, codes, activations])
    if not FEATURES.avx2:
        return _dot_codes_generic(builder, accumulator, codes, activations)
    if not wide_codes:
        return _dot_codes_avx2(builder, accumulator, codes, activations)
    low = builder.and_(codes, const(V64I8, 127))
    top = _shift_bytes_right(builder, codes, 7, 1)
    tops = _dot_codes_avx2(builder, const(V16I32, 0), top, activations)
    accumulator = builder.add(accumulator, builder.shl(tops, const(V16I32, 7)))
    return _dot_codes_avx2(builder, accumulator, low, activations)


def _dot_codes_generic(builder: Any, accumulator: Any, codes: Any, activations: Any) -> Any:
    wide = ir.VectorType(I32, 64)
    products = builder.mul(builder.zext(codes, wide), builder.sext(activations, wide))
    undefined = ir.Constant(wide, ir.Undefined)
    for j in range(4):
        lanes = ir.Constant(V16I32, [4 * i + j for i in range(16)])
        accumulator = builder.add(accumulator, builder.shuffle_vector(products, undefined, lanes))
    return accumulator


def _dot_codes_avx2(builder: Any, accumulator: Any, codes: Any, activations: Any) -> Any:
    """pmaddubsw and pmaddwd: codes below 128 times int8 cannot saturate the 16-bit sums."""
    bytes32, words16, ints8 = ir.VectorType(V64I8.element, 32), V16I16, ir.VectorType(I32, 8)
    maddubs = declare(builder, "llvm.x86.avx2.pmadd.ub.sw", words16, [bytes32, bytes32])
    madd = declare(builder, "llvm.x86.avx2.pmadd.wd", ints8, [words16, words16])
    halves = []
    for h in (0, 1):
        lanes = ir.Constant(ir.VectorType(I32, 32), list(range(32 * h, 32 * h + 32)))
        c, a = (
            builder.shuffle_vector(v, ir.Constant(V64I8, ir.Undefined), lanes) for v in (codes, activations)
        )
        halves.append(builder.call(madd, [builder.call(maddubs, [c, a]), const(words16, 1)]))
    lanes = ir.Constant(V16I32, list(range(16)))
    return builder.add(accumulator, builder.shuffle_vector(halves[0], halves[1], lanes))

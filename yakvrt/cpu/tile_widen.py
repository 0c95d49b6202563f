"""A weight tile as bfloat16 in the order that dot products of pairs read: LLVM IR."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels.tile_layout import BLOCK, LAYOUTS, ROWS, TileLayout
from . import simd
from .simd import BF16, I32, V16F32, V16I16, V16I32, V32I16, const, const_i64, fmadd, load, store
from .tile_reader import read_affine, read_codes, read_header

V32I32 = ir.VectorType(I32, 32)
WIDE_BLOCK = 2 * BLOCK * ROWS  # bytes of 32 columns of 16 rows


def make_widen_tile(format_name: str) -> Any:
    """An intrinsic f(tile, n_cols, out): bfloat16 [cols / 2, 16 rows, 2], n_cols a multiple of 32.

    Rounds to nearest, ties to even. Float tiles of any meaning will do: keys rest in the same order.
    """
    layout = LAYOUTS[format_name]

    @intrinsic
    def widen_tile(typing_context: Any, tile: Any, n_cols: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            (_emit_float if layout.is_float else _emit_quantised)(builder, layout, *values)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return widen_tile


def make_pair_rows(kind: str) -> Any:
    """An intrinsic f(low, high, out): 16 numbers of kind "f16" or "bf16" at either address become 16 pairs of
    bfloat16.
    """

    @intrinsic
    def pair_rows(typing_context: Any, low: Any, high: Any, out: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            low, high, out = values
            store(builder, _load_pair(builder, kind, low, high), out)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return pair_rows


def _load_pair(builder: Any, kind: str, low: Any, high: Any) -> Any:
    """16 numbers at either address as pairs of bfloat16, <16 x i32>."""
    if kind == "bf16":
        low, high = (builder.zext(load(builder, address, V16I16), V16I32) for address in (low, high))
        return builder.or_(low, builder.shl(high, const(V16I32, 16)))
    return _round_pair(builder, *(simd.load_floats(builder, kind, address) for address in (low, high)))


def _emit_float(builder: Any, layout: TileLayout, tile: Any, n_cols: Any, out: Any) -> None:
    kind = layout.name.lower()
    column_bytes = ROWS * simd.ELEMENT_BYTES[kind]
    with cgutils.for_range(builder, builder.sdiv(n_cols, const_i64(2))) as loop:
        columns = builder.add(tile, builder.mul(loop.index, const_i64(2 * column_bytes)))
        target = builder.add(out, builder.mul(loop.index, const_i64(4 * ROWS)))
        second = builder.add(columns, const_i64(column_bytes))
        store(builder, _load_pair(builder, kind, columns, second), target)


def _emit_quantised(builder: Any, layout: TileLayout, tile: Any, n_cols: Any, out: Any) -> None:
    n_super = builder.sdiv(n_cols, const_i64(layout.column_multiple))
    with cgutils.for_range(builder, n_super) as outer:
        superblock = builder.add(tile, builder.mul(outer.index, const_i64(layout.superblock_bytes)))
        header = read_header(builder, layout, superblock)
        with cgutils.for_range(builder, const_i64(layout.blocks)) as inner:
            start = builder.mul(inner.index, const_i64(layout.block_bytes))
            block = builder.add(superblock, builder.add(start, const_i64(layout.header_bytes)))
            index = builder.add(builder.mul(outer.index, const_i64(layout.blocks)), inner.index)
            target = builder.add(out, builder.mul(index, const_i64(WIDE_BLOCK)))
            for part in range(layout.parts):
                _emit_part(builder, layout, header, block, target, part)


def _emit_part(builder: Any, layout: TileLayout, header: Any, block: Any, target: Any, part: int) -> None:
    # A code written into the top bits of a mantissa is a number at once: 2^n + code.
    n_bits = 8 if layout.low_bits == 8 else 7
    scale, offset = read_affine(builder, layout, header, block, part)
    offset = fmadd(builder, scale, const(V16F32, -float(1 << n_bits)), offset)
    for group in range(8 * part // layout.parts, 8 * (part + 1) // layout.parts):
        words = builder.bitcast(read_codes(builder, layout, block, group), V16I32)
        columns = [_affine(builder, words, j, n_bits, scale, offset) for j in range(4)]
        for half in (0, 1):
            pair = _round_pair(builder, columns[2 * half], columns[2 * half + 1])
            store(builder, pair, target, 128 * group + 64 * half)


def _affine(builder: Any, words: Any, j: int, n_bits: int, scale: Any, offset: Any) -> Any:
    """scale * byte j of every word + offset, the offset being lowered by scale * 2^n_bits."""
    at = 23 - n_bits
    shift = 8 * j - at
    if shift > 0:
        words = builder.lshr(words, const(V16I32, shift))
    elif shift < 0:
        words = builder.shl(words, const(V16I32, -shift))
    field = builder.and_(words, const(V16I32, ((1 << n_bits) - 1) << at))
    number = builder.or_(field, const(V16I32, (127 + n_bits) << 23))
    return fmadd(builder, builder.bitcast(number, V16F32), scale, offset)


def _round_pair(builder: Any, low: Any, high: Any) -> Any:
    """Two vectors of float32 -> the nearest bfloat16, ties to even, side by side as <16 x i32>."""
    both = builder.shuffle_vector(low, high, ir.Constant(V32I32, list(range(32))))
    rounded = builder.bitcast(builder.fptrunc(both, ir.VectorType(BF16, 32)), V32I16)
    lanes = ir.Constant(V32I32, [lane for i in range(16) for lane in (i, 16 + i)])
    pairs = builder.shuffle_vector(rounded, ir.Constant(V32I16, ir.Undefined), lanes)
    return builder.bitcast(pairs, V16I32)

"""The inner loop of every matmul: a few weight tiles times a few tokens, as unrolled LLVM IR.

One generator serves all weight formats, decode (few tokens) and prefill (many): it differs only in how many
accumulators it keeps and whether it prefetches. Accumulators stay in registers for the whole row of the
matrix.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels.matmul import ADD, GATE
from ..kernels.tile_layout import LAYOUTS, ROWS, TileLayout
from . import simd
from .simd import F32, I32, V16F32, V16I32, V64I8, const, const_i64, emit_prefetch, fmadd, load, splat
from .tile_reader import dot_codes, read_affine, read_codes, read_header

# bytes that hide DRAM latency of the one pass that decoding makes over weights; whole tiles up to the second
PREFETCH_AHEAD, FAR_AHEAD = 16384, 65536


def make_tile_matmul(format_name: str, n_tiles: int, n_tokens: int, prefetch: bool) -> Any:
    """An intrinsic that multiplies `n_tiles` tiles with `n_tokens` packed tokens.

    Call it as f(weights, n_cols, x, scales, out, out_stride, bias, mode, ahead), addresses except n_cols,
    out_stride (bytes between tokens), mode (WRITE; ADD: add to what `out` holds; GATE: multiply it, silu
    being applied already) and ahead (bytes from what is read to what is prefetched). `x` and `scales` are in
    the layout of kernels/pack_activations.py; float formats ignore `scales`; bias 0 means none.
    """
    layout = LAYOUTS[format_name]
    emit = _emit_float if layout.is_float else _emit_quantised

    @intrinsic
    def tile_matmul(
        typing_context: Any,
        weights: Any,
        n_cols: Any,
        x: Any,
        scales: Any,
        out: Any,
        out_stride: Any,
        bias: Any,
        mode: Any,
        ahead: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            weights, n_cols, x, scales, out, out_stride, bias, mode, ahead = values
            sums = [
                [cgutils.alloca_once_value(builder, const(V16F32, 0.0)) for _ in range(n_tokens)]
                for _ in range(n_tiles)
            ]
            emit(builder, layout, sums, weights, n_cols, x, scales, ahead if prefetch else None)
            _emit_epilogue(builder, sums, out, out_stride, bias, mode)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), codegen

    return tile_matmul


def _emit_epilogue(builder: Any, sums: Any, out: Any, out_stride: Any, bias: Any, mode: Any) -> None:
    with builder.if_then(builder.icmp_signed("!=", bias, const_i64(0))):
        for t, row in enumerate(sums):
            b = load(builder, bias, V16F32, 64 * t)
            for cell in row:
                builder.store(builder.fadd(builder.load(cell), b), cell)
    rows = [builder.add(out, builder.mul(out_stride, const_i64(m))) for m in range(len(sums[0]))]
    for wanted, combine in ((ADD, builder.fadd), (GATE, builder.fmul)):
        with builder.if_then(builder.icmp_signed("==", mode, const_i64(wanted))):
            for t, row in enumerate(sums):
                for m, cell in enumerate(row):
                    old = load(builder, rows[m], V16F32, 64 * t)
                    builder.store(combine(builder.load(cell), old), cell)
    for t, row in enumerate(sums):
        for m, cell in enumerate(row):
            simd.store(builder, builder.load(cell), rows[m], 64 * t)


def _emit_quantised(
    builder: Any,
    layout: TileLayout,
    sums: Any,
    weights: Any,
    n_cols: Any,
    x: Any,
    scales: Any,
    ahead: Any,
) -> None:
    n_tiles, n_tokens = len(sums), len(sums[0])
    n_super = builder.sdiv(n_cols, const_i64(layout.column_multiple))
    tile_stride = builder.mul(n_super, const_i64(layout.superblock_bytes))
    tiles = [builder.add(weights, builder.mul(tile_stride, const_i64(t))) for t in range(n_tiles)]
    with cgutils.for_range(builder, n_super) as outer:
        offset = builder.mul(outer.index, const_i64(layout.superblock_bytes))
        supers = [builder.add(tile, offset) for tile in tiles]
        headers = [read_header(builder, layout, s) for s in supers]
        with cgutils.for_range(builder, const_i64(layout.blocks)) as inner:
            start = builder.add(
                builder.mul(inner.index, const_i64(layout.block_bytes)), const_i64(layout.header_bytes)
            )
            blocks = [builder.add(s, start) for s in supers]
            if ahead:
                for block in blocks:
                    emit_prefetch(builder, builder.add(block, ahead), 0, layout.block_bytes)
            column_block = builder.add(builder.mul(outer.index, const_i64(layout.blocks)), inner.index)
            codes = builder.add(x, builder.mul(column_block, const_i64(32 * n_tokens)))
            terms = builder.add(scales, builder.mul(column_block, const_i64(16 * n_tokens)))
            for part in range(layout.parts):
                _emit_part(builder, layout, sums, headers, blocks, codes, terms, part)


def _emit_part(
    builder: Any, layout: TileLayout, sums: Any, headers: Any, blocks: Any, codes: Any, terms: Any, part: int
) -> None:
    n_tiles, n_tokens = len(sums), len(sums[0])
    in_part = range(8 * part // layout.parts, 8 * (part + 1) // layout.parts)
    # groups that share a vector of nibbles follow each other, or it would occupy a register all the time
    groups = sorted(in_part, key=lambda group: (group % 4, group))
    # two chains of dot products where one token alone would wait for its own result
    chains = 2 if n_tiles * n_tokens <= 2 and layout.parts == 1 else 1
    dots = [[[const(V16I32, 0)] * chains for _ in range(n_tokens)] for _ in range(n_tiles)]
    for i, group in enumerate(groups):
        rows = [read_codes(builder, layout, block, group) for block in blocks]
        for m in range(n_tokens):
            word = load(builder, codes, I32, 32 * m + 4 * group)
            activations = builder.bitcast(splat(builder, word), V64I8)
            for t in range(n_tiles):
                chain = dots[t][m]
                chain[i % chains] = dot_codes(
                    builder, chain[i % chains], rows[t], activations, layout.low_bits == 8
                )
    sum_term = 1 if layout.parts == 1 else 2 + part
    for t in range(n_tiles):
        scale, offset = read_affine(builder, layout, headers[t], blocks[t], part)
        for m in range(n_tokens):
            total = dots[t][m][0]
            for other in dots[t][m][1:]:
                total = builder.add(total, other)
            x_scale = splat(builder, load(builder, terms, F32, 4 * m))
            x_sum = splat(builder, load(builder, terms, F32, 4 * (sum_term * n_tokens + m)))
            value = builder.load(sums[t][m])
            value = fmadd(builder, builder.fmul(scale, x_scale), builder.sitofp(total, V16F32), value)
            builder.store(fmadd(builder, offset, x_sum, value), sums[t][m])


def _emit_float(
    builder: Any,
    layout: TileLayout,
    sums: Any,
    weights: Any,
    n_cols: Any,
    x: Any,
    scales: Any,
    ahead: Any,
) -> None:
    n_tiles, n_tokens = len(sums), len(sums[0])
    kind = layout.name.lower()
    column_bytes = ROWS * simd.ELEMENT_BYTES[kind]
    tile_stride = builder.mul(n_cols, const_i64(column_bytes))
    tiles = [builder.add(weights, builder.mul(tile_stride, const_i64(t))) for t in range(n_tiles)]
    unroll = 4
    # separate chains per unrolled column where few accumulators would wait for each other
    chains = unroll if n_tiles * n_tokens <= 2 else 1
    cells = [
        [
            [sums[t][m]] + [cgutils.alloca_once_value(builder, const(V16F32, 0.0)) for _ in range(chains - 1)]
            for m in range(n_tokens)
        ]
        for t in range(n_tiles)
    ]
    with cgutils.for_range(builder, builder.sdiv(n_cols, const_i64(unroll))) as loop:
        start = builder.mul(loop.index, const_i64(unroll * column_bytes))
        columns = [builder.add(tile, start) for tile in tiles]
        tokens = builder.add(x, builder.mul(loop.index, const_i64(unroll * 4 * n_tokens)))
        if ahead:
            for column in columns:
                emit_prefetch(builder, builder.add(column, ahead), 0, unroll * column_bytes)
        for u in range(unroll):
            rows = [simd.load_floats(builder, kind, column, u * column_bytes) for column in columns]
            for m in range(n_tokens):
                value = splat(builder, load(builder, tokens, F32, 4 * (u * n_tokens + m)))
                for t in range(n_tiles):
                    cell = cells[t][m][u % chains]
                    builder.store(fmadd(builder, rows[t], value, builder.load(cell)), cell)
    for t in range(n_tiles):
        for m in range(n_tokens):
            first, *others = cells[t][m]
            for other in others:
                builder.store(builder.fadd(builder.load(first), builder.load(other)), first)

"""Products of bfloat16 blocks by AVX512-BF16, for CPUs without matrix registers: LLVM IR.

vdpbf16ps adds the products of a pair of columns to 16 float32 sums, so weights in the order of matrix
registers serve it as they are. It takes denormal numbers as 0.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels.pack_size import PREFILL_PACK
from . import simd
from .simd import I32, V16F32, V16I32, const, const_i64, load, op, splat

PAIRS = 16  # of columns, in a block
BLOCK_BYTES = 1024  # a block of a weight tile
UNROLL = 4  # pairs; all 16 would be 400 instructions


@op(types.void)
def configure_tiles(b: Any) -> None:
    """Vector registers are there for all."""


@op(types.void)
def release_tiles(b: Any) -> None:
    pass


def make_multiply_tiles(n_tiles: int, n_packs: int, gated: bool) -> Any:
    """As amx_matmul.make_multiply_tiles, for packs of PREFILL_PACK tokens; all sums are in registers."""
    tokens = [(p, m) for p in range(n_packs) for m in range(PREFILL_PACK)]

    @intrinsic
    def multiply_tiles(
        typing_context: Any,
        weights: Any,
        x: Any,
        pack_stride: Any,
        n_blocks: Any,
        out: Any,
        out_stride: Any,
        bias: Any,
        accumulate: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            weights, x, pack_stride, n_blocks, out, out_stride, bias, accumulate = values
            tiles = range(n_tiles)
            cells = [[cgutils.alloca_once(builder, V16F32) for _ in tokens] for _ in tiles]
            rows = [
                builder.add(out, builder.mul(out_stride, const_i64(p * PREFILL_PACK + m))) for p, m in tokens
            ]
            _emit_start(builder, cells, rows, bias, const_i64(0) if gated else accumulate)
            _emit_blocks(builder, cells, tokens, weights, x, pack_stride, n_blocks)
            for t in tiles:
                for cell, row in zip(cells[t], rows, strict=True):
                    total = builder.load(cell)
                    if gated:
                        total = builder.fmul(total, simd.silu(builder, load(builder, row, V16F32, 64 * t)))
                    simd.store(builder, total, row, 64 * t)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), codegen

    return multiply_tiles


def _emit_start(builder: Any, cells: Any, rows: Any, bias: Any, accumulate: Any) -> None:
    """Sums begin at what the rows hold, or at the bias, or at 0."""
    with builder.if_else(builder.icmp_signed("!=", accumulate, const_i64(0))) as (adding, fresh):
        with adding:
            for t, tile_cells in enumerate(cells):
                for cell, row in zip(tile_cells, rows, strict=True):
                    builder.store(load(builder, row, V16F32, 64 * t), cell)
        with fresh:
            for tile_cells in cells:
                for cell in tile_cells:
                    builder.store(const(V16F32, 0.0), cell)
            with builder.if_then(builder.icmp_signed("!=", bias, const_i64(0))):
                for t, tile_cells in enumerate(cells):
                    start = load(builder, bias, V16F32, 64 * t)
                    for cell in tile_cells:
                        builder.store(start, cell)


def _emit_blocks(
    builder: Any,
    cells: Any,
    tokens: list[tuple[int, int]],
    weights: Any,
    x: Any,
    pack_stride: Any,
    n_blocks: Any,
) -> None:
    n_packs = len(tokens) // PREFILL_PACK
    tile_stride = builder.mul(n_blocks, const_i64(BLOCK_BYTES))
    tiles = [builder.add(weights, builder.mul(tile_stride, const_i64(t))) for t in range(len(cells))]
    packs = [builder.add(x, builder.mul(pack_stride, const_i64(p))) for p in range(n_packs)]
    with cgutils.for_range(builder, n_blocks) as outer:
        at_weights = builder.mul(outer.index, const_i64(BLOCK_BYTES))
        at_x = builder.mul(outer.index, const_i64(4 * PAIRS * PREFILL_PACK))
        with cgutils.for_range(builder, const_i64(PAIRS // UNROLL)) as inner:
            skipped = builder.mul(inner.index, const_i64(64 * UNROLL))
            own_tiles = [builder.add(builder.add(tile, at_weights), skipped) for tile in tiles]
            skipped = builder.mul(inner.index, const_i64(4 * UNROLL))
            own_packs = [builder.add(builder.add(pack, at_x), skipped) for pack in packs]
            for pair in range(UNROLL):
                factors = [load(builder, tile, V16I32, 64 * pair) for tile in own_tiles]
                for i, (p, m) in enumerate(tokens):
                    word = load(builder, own_packs[p], I32, 4 * PAIRS * m + 4 * pair)
                    pairs = splat(builder, word)
                    for t, factor in enumerate(factors):
                        cell = cells[t][i]
                        builder.store(_dot(builder, builder.load(cell), factor, pairs), cell)


def _dot(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """total[i] + a[2i] * b[2i] + a[2i + 1] * b[2i + 1], pairs of bfloat16 being <16 x i32>."""
    vector = ir.VectorType(simd.BF16, 32)
    a, b = (builder.bitcast(v, vector) for v in (a, b))
    return simd.call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", V16F32, total, a, b)

"""Matrix registers for Numba kernels: products of bfloat16 blocks."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import amx
from .simd import I8, I32, const_i64, declare, op

BLOCK_BYTES = 1024  # a tile register
ROW_BYTES = 64


@op(types.void)
def configure_tiles(b: Any) -> None:
    amx.emit_configure(b)


@op(types.void)
def release_tiles(b: Any) -> None:
    amx.emit_release(b)


def make_multiply_tiles(n_tiles: int, n_packs: int) -> Any:
    """An intrinsic f(weights, x, pack_stride, n_blocks, out, out_stride, bias, accumulate).

    out[16 p + m][16 t + n] = sum over columns of x[p][m] * weights[t][n], plus bias[16 t + n] (0: none), or
    added to what `out` holds.
    Shapes: weights bfloat16 [n_tiles, n_blocks, 16 column pairs, 16, 2], x bfloat16 [n_packs][n_blocks, 16,
    32], packs pack_stride bytes apart, out float32, rows out_stride bytes apart.
    """

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
            _emit(builder, n_tiles, n_packs, *values)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), codegen

    return multiply_tiles


def _emit(
    builder: Any,
    n_tiles: int,
    n_packs: int,
    weights: Any,
    x: Any,
    pack_stride: Any,
    n_blocks: Any,
    out: Any,
    out_stride: Any,
    bias: Any,
    accumulate: Any,
) -> None:
    row_bytes, tile_stride = const_i64(ROW_BYTES), builder.mul(n_blocks, const_i64(BLOCK_BYTES))
    sums = [[t * n_packs + p for p in range(n_packs)] for t in range(n_tiles)]
    tokens = [n_tiles * n_packs + p for p in range(n_packs)]
    rows = [n_tiles * n_packs + n_packs + t for t in range(n_tiles)]

    def target(t: int, p: int) -> Any:
        return builder.add(
            out, builder.add(builder.mul(out_stride, const_i64(16 * p)), const_i64(ROW_BYTES * t))
        )

    cells = [(t, p) for t in range(n_tiles) for p in range(n_packs)]
    with builder.if_else(builder.icmp_signed("!=", accumulate, const_i64(0))) as (adding, fresh):
        with adding:
            for t, p in cells:
                amx.emit_load(builder, sums[t][p], target(t, p), out_stride)
        with fresh, builder.if_else(builder.icmp_signed("!=", bias, const_i64(0))) as (biased, plain):
            with biased:
                for t, p in cells:
                    start = builder.add(bias, const_i64(ROW_BYTES * t))
                    amx.emit_load(builder, sums[t][p], start, const_i64(0))  # the same row 16 times
            with plain:
                for t, p in cells:
                    amx.emit_zero(builder, sums[t][p])
    with cgutils.for_range(builder, n_blocks) as loop:
        row = builder.mul(builder.and_(loop.index, const_i64(15)), out_stride)
        for t, p in cells:
            _emit_prefetch_to_write(builder, builder.add(target(t, p), row))
        offset = builder.mul(loop.index, const_i64(BLOCK_BYTES))
        for tiles, base, stride in ((tokens, x, pack_stride), (rows, weights, tile_stride)):
            for i, tile in enumerate(tiles):
                start = builder.add(base, builder.mul(stride, const_i64(i)))
                amx.emit_load(builder, tile, builder.add(start, offset), row_bytes)
        for t, p in cells:
            amx.emit_dot_bf16(builder, sums[t][p], tokens[p], rows[t])
    for t, p in cells:
        amx.emit_store(builder, sums[t][p], target(t, p), out_stride)


def _emit_prefetch_to_write(builder: Any, address: Any) -> None:
    """Rows of results are far apart and far from the core: asked for one by one while the sums grow."""
    function = declare(builder, "llvm.prefetch.p0", ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    write, nearest, data = (ir.Constant(I32, flag) for flag in (1, 3, 1))
    builder.call(function, [builder.inttoptr(address, I8.as_pointer()), write, nearest, data])

"""Matrix registers for Numba kernels: products of bfloat16 blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import amx
from .simd import I8, I32, I64, V16F32, const_i64, declare, load, op, silu, store

BLOCK_BYTES = 1024  # a tile register
ROW_BYTES = 64


@op(types.void)
def configure_tiles(b: Any) -> None:
    amx.emit_configure(b)


@op(types.void)
def release_tiles(b: Any) -> None:
    amx.emit_release(b)


def make_multiply_tiles(n_tiles: int, n_packs: int, gated: bool = False) -> Any:
    """An intrinsic f(weights, x, pack_stride, n_blocks, out, out_stride, bias, accumulate).

    out[16 p + m][16 t + n] = sum over columns of x[p][m] * weights[t][n], plus bias[16 t + n] (0: none), or
    added to what `out` holds; or, if `gated`, times silu of what `out` holds, whatever `accumulate` says.
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
            _emit(builder, n_tiles, n_packs, gated, *values)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), codegen

    return multiply_tiles


def _emit(
    builder: Any,
    n_tiles: int,
    n_packs: int,
    gated: bool,
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

    def start() -> None:
        with builder.if_else(builder.icmp_signed("!=", bias, const_i64(0))) as (biased, plain):
            with biased:
                for t, p in cells:
                    row = builder.add(bias, const_i64(ROW_BYTES * t))
                    amx.emit_load(builder, sums[t][p], row, const_i64(0))  # the same row 16 times
            with plain:
                for t, p in cells:
                    amx.emit_zero(builder, sums[t][p])

    def add_block(block: Any) -> None:
        offset = builder.mul(block, const_i64(BLOCK_BYTES))
        for tiles, base, stride in ((tokens, x, pack_stride), (rows, weights, tile_stride)):
            for i, tile in enumerate(tiles):
                start = builder.add(base, builder.mul(stride, const_i64(i)))
                amx.emit_load(builder, tile, builder.add(start, offset), row_bytes)
        for t, p in cells:
            amx.emit_dot_bf16(builder, sums[t][p], tokens[p], rows[t])

    if gated:
        start()
        targets = [target(t, p) for t, p in cells]
        _emit_blocks_and_silu(builder, add_block, n_blocks, targets, out_stride, 16 * n_packs)
        product = builder.ptrtoint(cgutils.alloca_once(builder, V16F32, 16 * len(cells)), I64)
        for i, (t, p) in enumerate(cells):
            amx.emit_store(builder, sums[t][p], builder.add(product, const_i64(BLOCK_BYTES * i)), row_bytes)
        _emit_scale(builder, targets, out_stride, product)
        return
    with builder.if_else(builder.icmp_signed("!=", accumulate, const_i64(0))) as (adding, fresh):
        with adding:
            for t, p in cells:
                amx.emit_load(builder, sums[t][p], target(t, p), out_stride)
        with fresh:
            start()
    with cgutils.for_range(builder, n_blocks) as loop:
        row = builder.mul(builder.and_(loop.index, const_i64(15)), out_stride)
        for t, p in cells:
            _emit_prefetch_to_write(builder, builder.add(target(t, p), row))
        add_block(loop.index)
    for t, p in cells:
        amx.emit_store(builder, sums[t][p], target(t, p), out_stride)


def _emit_blocks_and_silu(
    builder: Any,
    add_block: Callable[[Any], None],
    n_blocks: Any,
    targets: list[Any],
    out_stride: Any,
    next_rows: int,
) -> None:
    """Between the blocks, spread over them, silu of the 16 rows of every target in place: vector units have
    nothing else to do while matrix registers are multiplied. The rows of the next packs are asked for.
    """
    ahead = builder.mul(out_stride, const_i64(next_rows))
    done = cgutils.alloca_once_value(builder, const_i64(0))
    with cgutils.for_range(builder, n_blocks) as loop:
        add_block(loop.index)
        due = builder.udiv(builder.shl(builder.add(loop.index, const_i64(1)), const_i64(4)), n_blocks)
        with cgutils.for_range_slice(builder, builder.load(done), due, const_i64(1), I64) as (row, _):
            start = builder.mul(row, out_stride)
            for target in targets:
                cell = builder.add(target, start)
                store(builder, silu(builder, load(builder, cell, V16F32)), cell)
                _emit_prefetch_to_write(builder, builder.add(cell, ahead))
        builder.store(due, done)


def _emit_scale(builder: Any, targets: list[Any], out_stride: Any, factors: Any) -> None:
    """16 rows of every target times factors, which lie target by target."""
    with cgutils.for_range(builder, const_i64(16)) as loop:
        start = builder.mul(loop.index, out_stride)
        own_factors = builder.add(factors, builder.mul(loop.index, const_i64(ROW_BYTES)))
        for i, target in enumerate(targets):
            cell = builder.add(target, start)
            factor = load(builder, own_factors, V16F32, BLOCK_BYTES * i)
            store(builder, builder.fmul(load(builder, cell, V16F32), factor), cell)


def _emit_prefetch_to_write(builder: Any, address: Any) -> None:
    """Rows of results are far apart and far from the core: asked for one by one while the sums grow."""
    function = declare(builder, "llvm.prefetch.p0", ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    write, nearest, data = (ir.Constant(I32, flag) for flag in (1, 3, 1))
    builder.call(function, [builder.inttoptr(address, I8.as_pointer()), write, nearest, data])

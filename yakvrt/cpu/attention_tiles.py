"""The two inner loops of attention as unrolled LLVM IR: scores against a run of keys, and the weighted sum of
values.

Keys rest in tiles of 16 positions, [D][16], so that lanes are positions; values rest in rows [D]. Both loops
take
several query rows at once, which share every key and value they load.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

from . import simd
from .simd import (
    ELEMENT_BYTES,
    F32,
    FEATURES,
    V16F32,
    const,
    const_i64,
    emit_prefetch,
    fmadd,
    load,
    load_floats,
    splat,
)

PREFETCH_AHEAD = 4096  # bytes
MAX_ACCUMULATORS = 24 if FEATURES.avx512 else 6
MAX_SCORE_ROWS = 12 if FEATURES.avx512 else 4


def _groups(n: int, size: int) -> list[range]:
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


@cache
def make_scores(n_rows: int, head_dim: int, kind: str, *, prefetch: bool = False) -> Any:
    """An intrinsic f(keys, n_tiles, queries, scores, row_bytes): scores[row][position] = queries[row] .
    keys[position]. With `prefetch` it asks for the keys behind, as one pass over a long history pays.

    Shapes: keys `kind` [n_tiles][D][16], queries float32 [n_rows][D], scores float32 rows `row_bytes` apart.
    """
    tile_bytes = head_dim * 16 * ELEMENT_BYTES[kind]

    @intrinsic
    def scores(typing_context: Any, keys: Any, n_tiles: Any, queries: Any, out: Any, row_bytes: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            keys, n_tiles, queries, out, row_bytes = values
            for rows in _groups(n_rows, MAX_SCORE_ROWS):
                with cgutils.for_range(builder, n_tiles) as loop:
                    tile = builder.add(keys, builder.mul(loop.index, const_i64(tile_bytes)))
                    if prefetch:
                        emit_prefetch(builder, tile, PREFETCH_AHEAD, tile_bytes)
                    sums = _emit_dot_products(builder, kind, head_dim, rows, tile, queries)
                    position = builder.mul(loop.index, const_i64(64))
                    for row, total in zip(rows, sums, strict=True):
                        offset = builder.add(builder.mul(row_bytes, const_i64(row)), position)
                        simd.store(builder, total, out, offset)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), codegen

    return scores


def _emit_dot_products(
    builder: Any, kind: str, head_dim: int, rows: range, tile: Any, queries: Any
) -> list[Any]:
    chains = 2 if 2 * len(rows) <= MAX_SCORE_ROWS else 1
    zero = const(V16F32, 0.0)
    cells = [[cgutils.alloca_once_value(builder, zero) for _ in range(chains)] for _ in rows]
    step = 16  # dimensions per turn: enough to keep the loop cheap, few enough to compile fast
    key_bytes = 16 * ELEMENT_BYTES[kind]
    with cgutils.for_range(builder, const_i64(head_dim // step)) as loop:
        keys = builder.add(tile, builder.mul(loop.index, const_i64(step * key_bytes)))
        part = builder.add(queries, builder.mul(loop.index, const_i64(step * 4)))
        for d in range(step):
            key = load_floats(builder, kind, keys, d * key_bytes)
            for i, row in enumerate(rows):
                query = splat(builder, load(builder, part, F32, 4 * (row * head_dim + d)))
                cell = cells[i][d % chains]
                builder.store(fmadd(builder, key, query, builder.load(cell)), cell)
    sums = [[builder.load(cell) for cell in row] for row in cells]
    return [row[0] if chains == 1 else builder.fadd(*row) for row in sums]


@cache
def make_weighted_sum(n_rows: int, head_dim: int, kind: str, *, prefetch: bool = False) -> Any:
    """An intrinsic f(values, n_positions, weights, row_bytes, out): out[row] += sum of weights[row][p] *
    values[p].

    Shapes: values `kind` [n_positions][D], weights float32 rows `row_bytes` apart, out float32 [n_rows][D].
    """
    n_vectors = head_dim // 16
    row_group = max(1, MAX_ACCUMULATORS // n_vectors)

    @intrinsic
    def weighted_sum(
        typing_context: Any, values: Any, n_positions: Any, weights: Any, row_bytes: Any, out: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            for rows in _groups(n_rows, row_group):
                for vectors in _groups(n_vectors, MAX_ACCUMULATORS):
                    ahead = prefetch and rows.start == vectors.start == 0  # once per value
                    _emit_weighted_sum(builder, kind, head_dim, rows, vectors, arguments, ahead)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), codegen

    return weighted_sum


def _emit_weighted_sum(
    builder: Any, kind: str, head_dim: int, rows: range, vectors: range, arguments: Any, ahead: bool
) -> None:
    values, n_positions, weights, row_bytes, out = arguments
    cells = {}
    for row in rows:
        for j in vectors:
            start = load(builder, out, V16F32, 4 * (row * head_dim + 16 * j))
            cells[row, j] = cgutils.alloca_once(builder, V16F32)
            builder.store(start, cells[row, j])
    with cgutils.for_range(builder, n_positions) as loop:
        value_row = builder.add(values, builder.mul(loop.index, const_i64(head_dim * ELEMENT_BYTES[kind])))
        if ahead:
            emit_prefetch(builder, value_row, PREFETCH_AHEAD, head_dim * ELEMENT_BYTES[kind])
        position = builder.mul(loop.index, const_i64(4))
        factors = {}
        for row in rows:
            offset = builder.add(builder.mul(row_bytes, const_i64(row)), position)
            factors[row] = splat(builder, load(builder, weights, F32, offset))
        for j in vectors:
            value = load_floats(builder, kind, value_row, 16 * j * ELEMENT_BYTES[kind])
            for row in rows:
                cell = cells[row, j]
                builder.store(fmadd(builder, value, factors[row], builder.load(cell)), cell)
    for (row, j), cell in cells.items():
        simd.store(builder, builder.load(cell), out, 4 * (row * head_dim + 16 * j))

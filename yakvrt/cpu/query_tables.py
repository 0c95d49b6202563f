"""Tables of one query: its products with every point of a grid as bytes (codeword_tables.py), as LLVM IR.

Shapes: uint8 [positions][128]. At position i, byte b of point p stands for the product of the query's part i,
rotated, with that point: step * (b - 127.5). The largest product of a query is 127.5 steps. The second half
of a grid mirrors the first: 255 - b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels.higgs_layout import SELECTORS, GridTables
from . import simd
from .query_record import TABLE_BYTES
from .simd import (
    F32,
    I16,
    I32,
    V16F32,
    V16I8,
    V16I32,
    V64I8,
    const,
    const_i64,
    fmadd,
    load,
    max_lanes,
    splat,
    store,
    vmax,
)

STEP = 2 / 127.5  # of the largest product: what a sum of averages of two counts


def make_put_tables(kind: str, head_dim: int) -> Any:
    """An intrinsic f(out, query, tables) -> the largest product, in steps of the grid's bytes.

    Shapes: query float32 [D], rotated; `tables`: of the selector's grid.
    """
    selector = SELECTORS[kind]
    dim, first = selector.dim, GridTables(selector.dim, 256).bytes8
    n_codes, n_padded = head_dim // dim, 4 * selector.tile_vectors(head_dim)

    def for_products(builder: Any, arguments: Any, use: Callable[[Any, Any], None]) -> None:
        """use(where the bytes of 16 products belong, the products)"""
        out, query, tables = arguments
        with cgutils.for_range(builder, const_i64(TABLE_BYTES // 16)) as outer:
            start = builder.mul(outer.index, const_i64(16))
            plane, points = builder.add(tables, start), []
            for d in range(dim):
                raw = builder.zext(load(builder, plane, V16I8, first + d * TABLE_BYTES), V16I32)
                points.append(builder.fsub(builder.sitofp(raw, V16F32), const(V16F32, 127.5)))
            with cgutils.for_range(builder, const_i64(n_codes)) as inner:
                part = builder.add(query, builder.mul(inner.index, const_i64(4 * dim)))
                product = const(V16F32, 0.0)
                for d, point in enumerate(points):
                    product = fmadd(builder, splat(builder, load(builder, part, F32, 4 * d)), point, product)
                table = builder.add(out, builder.mul(inner.index, const_i64(TABLE_BYTES)))
                use(builder.add(table, start), product)

    @intrinsic
    def put_tables(typing_context: Any, out: Any, query: Any, tables: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            cell = cgutils.alloca_once_value(builder, const(V16F32, 0.0))

            def keep_largest(place: Any, product: Any) -> None:
                size = simd.call(builder, "llvm.fabs.v16f32", V16F32, product)
                builder.store(vmax(builder, size, builder.load(cell)), cell)

            for_products(builder, values, keep_largest)  # again below: faster than to keep them
            largest = max_lanes(builder, builder.load(cell))
            some = builder.fcmp_ordered(">", largest, ir.Constant(F32, 1e-30))
            inverse = builder.fdiv(ir.Constant(F32, 127.5), largest)
            inverse = splat(builder, builder.select(some, inverse, ir.Constant(F32, 0.0)))

            to_int = "llvm.x86.avx512.mask.cvtps2dq.512"

            def put_bytes(place: Any, product: Any) -> None:
                # rounds to nearest, as the float unit is set
                shifted = fmadd(builder, product, inverse, const(V16F32, 127.5))
                every, current = ir.Constant(I16, -1), ir.Constant(I32, 4)
                codes = simd.call(builder, to_int, V16I32, shifted, const(V16I32, 0), every, current)
                store(builder, builder.trunc(codes, V16I8), place)

            for_products(builder, values, put_bytes)
            for i in range(n_codes * TABLE_BYTES, n_padded * TABLE_BYTES, 64):
                store(builder, const(V64I8, 0), values[0], i)  # missing sub-vectors, whose code is 0
            return largest

        return types.float32(types.int64, types.int64, types.int64), codegen

    return put_tables

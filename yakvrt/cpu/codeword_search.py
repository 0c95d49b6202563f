"""The nearest grid points of many sub-vectors, as LLVM IR: lanes are sub-vectors, points are broadcast."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from . import simd
from .simd import F32, FEATURES, I32, V16F32, V16I8, V16I32, const, const_i64, fmadd, load, splat

UNROLL = 4  # grid points per turn of the loop
SIGN = -(2**31)


def search_vectors(dim: int) -> int:
    """Vectors of 16 sub-vectors searched together, as many as the registers hold."""
    if not FEATURES.avx512:
        return 1
    return 4 if dim <= 4 else 2


def _planes(builder: Any, dim: int, y: Any) -> list[Any]:
    """16 sub-vectors from memory -> one vector per dimension."""
    vectors = [load(builder, y, V16F32, 64 * i) for i in range(dim)]
    planes = []
    while len(vectors) > 1:  # neighbours joined: a vector of 16 * k numbers
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        n = vectors[0].type.count * 2
        every = ir.Constant(ir.VectorType(I32, n), list(range(n)))
        vectors = [builder.shuffle_vector(a, b, every) for a, b in pairs]
    for j in range(dim):
        lanes = ir.Constant(V16I32, [dim * i + j for i in range(16)])
        planes.append(builder.shuffle_vector(vectors[0], ir.Constant(vectors[0].type, ir.Undefined), lanes))
    return planes


def make_search(dim: int, n_points: int, n_vectors: int) -> Any:
    """An intrinsic f(y, search, codes, scores) for 16 * n_vectors sub-vectors.

    The code is the point with the largest y.g - |g|^2 / 2; that value is the score. Since -g is a point too,
    the larger of the two is |y.g| - |g|^2 / 2, and the sign of y.g says which it is.
    Shapes: y float32 [16 * n_vectors][dim], search as in GridTables, codes uint8 and scores float32
    [16 * n_vectors].
    """

    half = n_points // 2

    @intrinsic
    def search(typing_context: Any, y: Any, table: Any, codes: Any, scores: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            y, table, codes, scores = values
            offsets = [const_i64(64 * dim * i) for i in range(n_vectors)]
            planes = [_planes(builder, dim, builder.add(y, offset)) for offset in offsets]
            best = [cgutils.alloca_once_value(builder, const(V16F32, float("-inf"))) for _ in offsets]
            chosen = [cgutils.alloca_once_value(builder, const(V16I32, 0)) for _ in offsets]
            with cgutils.for_range(builder, const_i64(half // UNROLL)) as loop:
                turn = builder.add(table, builder.mul(loop.index, const_i64(UNROLL * 4 * (dim + 1))))
                first = builder.trunc(builder.mul(loop.index, const_i64(UNROLL)), I32)
                for u in range(UNROLL):
                    point = [
                        splat(builder, load(builder, turn, F32, 4 * (u * (dim + 1) + j)))
                        for j in range(dim + 1)
                    ]
                    code = splat(builder, builder.add(first, ir.Constant(I32, u)))
                    for i in range(n_vectors):
                        dot = builder.fmul(planes[i][0], point[0])
                        for j in range(1, dim):
                            dot = fmadd(builder, planes[i][j], point[j], dot)
                        bits = builder.bitcast(dot, V16I32)
                        size = builder.bitcast(builder.and_(bits, const(V16I32, 0x7FFFFFFF)), V16F32)
                        score = builder.fsub(size, point[dim])
                        signed = builder.or_(builder.and_(bits, const(V16I32, SIGN)), code)
                        old = builder.load(best[i])
                        better = builder.fcmp_ordered(">", score, old)
                        builder.store(builder.select(better, score, old), best[i])
                        builder.store(builder.select(better, signed, builder.load(chosen[i])), chosen[i])
            for i in range(n_vectors):
                found = builder.load(chosen[i])
                mirrored = builder.icmp_signed("<", found, const(V16I32, 0))
                code = builder.select(mirrored, builder.add(found, const(V16I32, half)), found)
                simd.store(builder, builder.trunc(code, V16I8), codes, 16 * i)
                simd.store(builder, builder.load(best[i]), scores, 64 * i)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), codegen

    return search

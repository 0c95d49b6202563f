"""Dot products of one query with rows of float32, 16 rows at a time, as unrolled LLVM IR.

The lanes of 16 vectors are summed by adding pairs of vectors: far fewer steps than one by one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir

from .simd import V16F32, V16I32, addr, fmadd, load, op, v16f32

ROWS = 16


def _fold(builder: Any, a: Any, b: Any, half: int) -> Any:
    """Adds the halves of every run of 2 * half lanes; a run of a comes before that of b."""
    starts = [source + start for start in range(0, 16, 2 * half) for source in (0, 16)]
    low = ir.Constant(V16I32, [start + i for start in starts for i in range(half)])
    high = ir.Constant(V16I32, [start + half + i for start in starts for i in range(half)])
    return builder.fadd(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))


@cache
def make_row_scores(head_dim: int) -> Any:
    """An intrinsic f(rows, query) -> the dot products of the query with 16 rows.

    Shapes: rows float32 [16][D], query float32 [D].
    """

    @op(v16f32, addr, addr)
    def row_scores(b: Any, rows: Any, query: Any) -> Any:
        parts = [load(b, query, V16F32, 4 * j) for j in range(0, head_dim, 16)]
        sums = []
        for i in range(ROWS):
            total = None
            for j, part in enumerate(parts):
                piece = load(b, rows, V16F32, 4 * (i * head_dim + 16 * j))
                total = b.fmul(piece, part) if total is None else fmadd(b, piece, part, total)
            sums.append(total)
        half = ROWS // 2
        while half:
            sums = [_fold(b, a, c, half) for a, c in zip(sums[:half], sums[half:], strict=True)]
            half //= 2
        return sums[0]

    return row_scores

"""The fast Walsh-Hadamard transform of a row in registers, as unrolled LLVM IR."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import simd
from .simd import V16F32, V16I32, const, fmadd, load

LANES = 16


def _transform(builder: Any, vectors: list[Any]) -> list[Any]:
    """Hadamard of 16 * len(vectors) numbers, not scaled; the length of the list is a power of two."""
    vectors = list(vectors)
    step = 1
    while step < LANES:  # partners in the same vector
        lanes = ir.Constant(V16I32, [i ^ step for i in range(LANES)])
        sign = ir.Constant(V16F32, [-1.0 if i & step else 1.0 for i in range(LANES)])
        for i, vector in enumerate(vectors):
            partner = builder.shuffle_vector(vector, ir.Constant(V16F32, ir.Undefined), lanes)
            vectors[i] = fmadd(builder, vector, sign, partner)
        step *= 2
    step = 1
    while step < len(vectors):
        for i in range(len(vectors)):
            if not i & step:
                a, b = vectors[i], vectors[i + step]
                vectors[i], vectors[i + step] = builder.fadd(a, b), builder.fsub(a, b)
        step *= 2
    return vectors


def _mix(builder: Any, parts: list[list[Any]], matrix: list[list[float]]) -> list[list[Any]]:
    """Part j of the result is the sum over i of matrix[j][i] * parts[i]."""
    mixed = []
    for row in matrix:
        sums = [builder.fmul(vector, const(V16F32, row[0])) for vector in parts[0]]
        for factor, part in zip(row[1:], parts[1:], strict=True):
            sums = [
                fmadd(builder, vector, const(V16F32, factor), total)
                for vector, total in zip(part, sums, strict=True)
            ]
        mixed.append(sums)
    return mixed


def make_rotation(power: int, small: list[list[float]], inverse: bool, flips: list[float] | None) -> Any:
    """An intrinsic f(target, source): kron(small, Hadamard of size `power`) / sqrt(power), or its inverse.

    `small` is an orthonormal matrix; `flips` (+-1 per coordinate) come before the rotation and after its
    inverse.
    """
    n_parts, n_vectors = len(small), power // LANES
    scale = power**-0.5
    matrix = [
        [scale * (small[i][j] if inverse else small[j][i]) for i in range(n_parts)] for j in range(n_parts)
    ]

    def flip(builder: Any, vectors: list[Any]) -> list[Any]:
        if flips is None:
            return vectors
        signs = [ir.Constant(V16F32, flips[LANES * i : LANES * i + LANES]) for i in range(len(vectors))]
        return [builder.fmul(vector, sign) for vector, sign in zip(vectors, signs, strict=True)]

    @intrinsic
    def rotate(typing_context: Any, target: Any, source: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            target, source = values
            vectors = [load(builder, source, V16F32, 64 * i) for i in range(n_parts * n_vectors)]
            if not inverse:
                vectors = flip(builder, vectors)
            parts = [
                _transform(builder, vectors[n_vectors * i : n_vectors * (i + 1)]) for i in range(n_parts)
            ]
            vectors = [vector for part in _mix(builder, parts, matrix) for vector in part]
            if inverse:
                vectors = flip(builder, vectors)
            for i, vector in enumerate(vectors):
                simd.store(builder, vector, target, 64 * i)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return rotate

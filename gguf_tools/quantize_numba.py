"""The inner loops of quantize_kernels compiled by Numba: the same operations in the same order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

# Lanes at a time, so that the sums stay in the first-level cache.
LANES = 512


@functools.cache
def compiled_kernels() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """moments, residual and levels, compiled for this processor."""
    from numba import njit, types

    matrix, lane, number = types.float32[:, ::1], types.float32[::1], types.float32
    # Adding and taking off 1.5 * 2**23 rounds to the nearest whole number, halves to even, in two additions.
    magic = np.float32(12582912)

    # Loops from zero over whole slices are the ones that become vector instructions.
    @njit(nogil=True)
    def add_moments(
        x: Any, offset: Any, inverse: Any, low: Any, high: Any, total: Any, squares: Any, products: Any
    ) -> None:
        for j in range(len(x)):
            level = (min(max((x[j] + offset[j]) * inverse[j], low), high) + magic) - magic
            total[j] += level
            squares[j] += level * level
            products[j] += x[j] * level

    @njit(
        "UniTuple(float32[::1], 3)(float32[:, ::1], float32[::1], float32[::1], float32, float32)", nogil=True
    )
    def moments(x: Any, offset: Any, inverse: Any, low: Any, high: Any) -> Any:
        n_rows, n_lanes = x.shape
        total = np.zeros(n_lanes, np.float32)
        squares = np.zeros(n_lanes, np.float32)
        products = np.zeros(n_lanes, np.float32)
        for start in range(0, n_lanes, LANES):
            part = slice(start, min(start + LANES, n_lanes))
            sums = total[part], squares[part], products[part]
            for r in range(n_rows):
                add_moments(x[r, part], offset[part], inverse[part], low, high, sums[0], sums[1], sums[2])
        return total, squares, products

    @njit(nogil=True)
    def add_residual(x: Any, scale: Any, offset: Any, inverse: Any, low: Any, high: Any, total: Any) -> None:
        for j in range(len(x)):
            level = (min(max((x[j] + offset[j]) * inverse[j], low), high) + magic) - magic
            error = level * scale[j] - offset[j] - x[j]
            total[j] += error * error

    @njit(lane(matrix, lane, lane, lane, number, number), nogil=True)
    def residual(x: Any, scale: Any, offset: Any, inverse: Any, low: Any, high: Any) -> Any:
        n_rows, n_lanes = x.shape
        total = np.zeros(n_lanes, np.float32)
        for start in range(0, n_lanes, LANES):
            part = slice(start, min(start + LANES, n_lanes))
            for r in range(n_rows):
                add_residual(x[r, part], scale[part], offset[part], inverse[part], low, high, total[part])
        return total

    @njit(types.int8[:, ::1](matrix, lane, lane, number, number), nogil=True)
    def levels(x: Any, offset: Any, inverse: Any, low: Any, high: Any) -> Any:
        n_rows, n_lanes = x.shape
        out = np.empty((n_rows, n_lanes), np.int8)
        for r in range(n_rows):
            for j in range(n_lanes):
                level = (min(max((x[r, j] + offset[j]) * inverse[j], low), high) + magic) - magic
                out[r, j] = np.int8(level)
        return out

    return moments, residual, levels

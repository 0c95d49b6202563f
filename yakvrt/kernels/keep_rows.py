"""Keeps the last rows of a prompt by their positions, chunk after chunk."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work


def keep_rows_ref(kept: np.ndarray, x: np.ndarray, positions: np.ndarray) -> None:
    """kept[p % n] becomes the row of position p, for the last n positions.

    Shapes: kept [n, E] (changed), x [B, E] of consecutive positions [B].
    """
    n = len(kept)
    kept[positions[-n:] % n] = x[-n:]


def keep_rows_cuda(g: Any) -> CudaKernel:
    """keep_rows_ref. Shapes: kept float32 [n_kept, width], x float32 [rows, stride].

    Grid: x, blocks of 256 numbers of a row; y, rows.
    """
    threads = 256

    def kernel(kept, n_kept, width, x, stride, positions, n_rows):  # type: ignore[no-untyped-def]
        row, column = g.block_y(), g.block() * threads + g.thread()
        n = g.int32(n_rows[0])
        if row < n and row >= n - n_kept and column < width:
            place = positions[row] % n_kept
            kept[place * width + column] = x[g.int64(row) * stride + column]

    return CudaKernel(kernel, "f32* i32 i32 f32* i32 i64* i64*", threads, work=Work("number", 8))

"""Gathers scattered rows of host memory into one block, which a single copy can then take over a link."""

from __future__ import annotations

from typing import Any

import numpy as np

# Of a row that comes up, so much is asked for ahead: enough rows to cover a read of memory, and of a long row
# only the start, whose rest the processor asks for by itself.
AHEAD_BYTES, ROW_START = 2048, 512


def gather_rows_ref(source: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Shapes: source uint8 [rows, row_bytes], ids int32 [n] -> uint8 [n, row_bytes]."""
    return source[ids]


def gather_rows_cpu(row_bytes: int) -> Any:
    """gather_rows_ref. Threads share the rows.

    Args: out, source, source_stride, ids, n_rows. Shapes: out uint8 [n_rows, row_bytes], row_bytes a multiple
    of 8; rows of source start every source_stride bytes; ids int32 [n_rows].
    """
    from ..cpu import vector_ops as v

    whole = row_bytes // 64 * 64
    ahead = max(1, AHEAD_BYTES // row_bytes)
    start = min(row_bytes, ROW_START)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, source, stride = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        ids, n_rows = v.get_i64(args + 24), v.get_i64(args + 32)
        first, last = v.share(n_rows, thread, n_threads, 0)
        for i in range(first, last):
            coming = source + v.get_i32(ids + min(i + ahead, last - 1) * 4) * stride
            for j in range(0, start, 64):
                v.prefetch(coming + j)
            row = source + v.get_i32(ids + i * 4) * stride
            target = out + i * row_bytes
            for j in range(0, whole, 64):
                v.store_f32(target + j, v.load_f32(row + j))
            for j in range(whole, row_bytes, 8):
                v.put_i64(target + j, v.get_i64(row + j))

    return kernel

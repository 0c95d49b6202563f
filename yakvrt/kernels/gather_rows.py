"""Gathers scattered rows into one block: on the host, which a single copy can then take over a link, or by a
GPU from where they lie.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work

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


def gather_rows_cuda(g: Any, loads: int) -> CudaKernel:
    """gather_rows_ref over rows of whole pieces of 16 bytes, on the device or in pinned host memory on either
    side (zero-copy).

    Grid: any number of blocks. A lane has `loads` loads of 16 bytes under way, a block 4096 * loads bytes.
    Shapes: out and source uint32, rows of 4 * pieces words; ids int32 [n_rows]; n_rows * pieces below 2^30.
    """
    threads, n_held = 256, 4 * loads
    warps, chunk = threads // 32, 32 * loads

    def kernel(out, source, ids, n_rows, pieces):  # type: ignore[no-untyped-def]
        lane = g.int32(g.thread() % 32)
        warp, n_warps = g.int32(g.block() * warps + g.thread() // 32), g.int32(g.n_blocks() * warps)
        n_pieces, first = g.int32(n_rows * pieces), g.int32(warp * chunk)
        while first < n_pieces:
            held, own_rows = g.local_u32(n_held), g.local_i32(loads)
            for k in range(loads):  # all at once, or a row would wait for the ids of those before it
                at = g.int32(min(first + k * 32 + lane, n_pieces - 1))
                own_rows[k] = ids[g.int32(g.uint32(at) // g.uint32(pieces))]
            for k in range(loads):
                at = g.int32(first + k * 32 + lane)
                a, b, c, d = g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0)
                if at < n_pieces:
                    i = g.int32(g.uint32(at) // g.uint32(pieces))
                    word = (g.int64(own_rows[k]) * pieces + (at - i * pieces)) * 4
                    a, b, c, d = g.load_constant_u32x4(source, word)
                held[4 * k], held[4 * k + 1], held[4 * k + 2], held[4 * k + 3] = a, b, c, d
            for k in range(loads):
                at = g.int32(first + k * 32 + lane)
                if at < n_pieces:
                    a, b, c, d = held[4 * k], held[4 * k + 1], held[4 * k + 2], held[4 * k + 3]
                    g.store_u32x4(out, g.int64(at) * 4, a, b, c, d)
            first = g.int32(first + n_warps * chunk)

    return CudaKernel(
        kernel,
        "u32* u32* i32* i32 i32",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("piece of 16 bytes", 32),
    )

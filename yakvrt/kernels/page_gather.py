"""A CUDA kernel that brings together the rows that a step attends to: resident ones and chosen pages."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work
from .page_layout import PageShape

N_AHEAD = 4  # loads of 16 bytes that a lane has under way
THREADS = 256
BLOCK_BYTES = THREADS * N_AHEAD * 16


def page_gather_ref(
    rows: np.ndarray, ring: np.ndarray, size: int, n_rows: int, ids: np.ndarray, shape: PageShape
) -> np.ndarray:
    """Of one head: first and last rows, then those of pages `ids`, counted from the first that can be chosen.

    Shapes: rows [n, numbers] of all tokens, ring [places, numbers] -> [n_rows, numbers].
    """
    page, sinks = shape.page, shape.n_sinks
    resident = np.arange(n_rows - len(ids) * page)
    places = np.where(resident < sinks, resident, sinks + (resident - sinks + size * page) % shape.ring_len)
    positions = sinks + (ids[:, None] * page + np.arange(page)).reshape(-1)
    return np.concatenate([ring[places], rows[positions]])


def page_gather_cuda(g: Any, row_bytes: int) -> CudaKernel:
    """page_gather_ref for keys and values of every head, from tables on the device or in pinned host memory.

    Grid: any number of blocks, of which each has BLOCK_BYTES under way: few keep a link to the host busy.
    Shapes: tables uint32 of rows of row_bytes; out_k and out_v [B * Hk][out_stride], strides in words. ids
    int32 [B * Hk][ids_stride]; sizes, budgets and lasts of page_lengths_cuda.
    Raises: ValueError for rows that are not multiples of 16 bytes, or larger than 1024.
    """
    if row_bytes % 16 or not 16 <= row_bytes <= 1024:
        raise ValueError(f"rows of {row_bytes} bytes cannot be gathered: use a multiple of 16 up to 1024")
    threads, n_ahead, row_words = THREADS, N_AHEAD, row_bytes // 4
    half = row_bytes // 16  # pieces of a key, which those of its value follow
    n_held, warps, chunk = 4 * N_AHEAD, threads // 32, 32 * N_AHEAD

    @g.inline
    def place_of(i, n_resident, own_ids, n_sinks, ring_len, page, size):  # type: ignore[no-untyped-def]
        """In the ring, or behind n_resident among all rows."""
        if i >= n_resident:
            j = g.int32(i - n_resident)
            of_page = g.int32(g.uint32(j) // g.uint32(page))
            return g.int32(n_sinks + own_ids[of_page] * page + (j - of_page * page))
        if i >= n_sinks:
            return g.int32(n_sinks + (i - n_sinks + size * page) % ring_len)
        return g.int32(i)

    @g.inline
    def load(near, far, is_near, word):  # type: ignore[no-untyped-def]
        if is_near:
            return g.load_u32x4(near, word)
        return g.load_u32x4(far, word)

    def kernel(  # type: ignore[no-untyped-def]
        out_k, out_v, out_stride, rows_k, rows_v, slot_stride, head_stride, ring_k, ring_v, ring_slot_stride,
        ring_head_stride, slots, n_rows, n_heads, sizes, budgets, lasts, ids, ids_stride, n_sinks, ring_len,
        page,
    ):  # fmt: skip
        lane = g.int32(g.thread() % 32)
        warp, n_warps = g.int32(g.block() * warps + g.thread() // 32), g.int32(g.n_blocks() * warps)
        n_segments, next_chunk = g.int32(n_rows[0] * n_heads), warp
        for segment in range(g.int32(0), n_segments, g.int32(1)):
            row_index = g.int32(g.uint32(segment) // g.uint32(n_heads))
            head, slot = segment - row_index * n_heads, slots[row_index]
            n_pieces = g.int32((lasts[row_index] + 1) * (2 * half))
            n_chunks = g.int32((n_pieces + chunk - 1) // chunk)
            size = g.int32(sizes[segment])
            n_resident = g.int32(lasts[row_index] + 1 - budgets[segment] * page)
            own_ids = g.shifted(ids, g.int64(segment) * ids_stride)
            far, near = slot * slot_stride + head * head_stride, slot * ring_slot_stride
            near += head * ring_head_stride
            far_k, far_v = g.shifted(rows_k, far), g.shifted(rows_v, far)
            near_k, near_v = g.shifted(ring_k, near), g.shifted(ring_v, near)
            own_k = g.shifted(out_k, g.int64(segment) * out_stride)
            own_v = g.shifted(out_v, g.int64(segment) * out_stride)
            while next_chunk < n_chunks:
                held, places = g.local_u32(n_held), g.local_i32(n_ahead)
                for k in range(n_ahead):  # all at once, or a row would wait for the ids of those before it
                    at = g.int32(min(next_chunk * chunk + k * 32 + lane, n_pieces - 1))
                    i = g.int32(at // (2 * half))
                    places[k] = place_of(i, n_resident, own_ids, n_sinks, ring_len, page, size)
                for k in range(n_ahead):
                    at = g.int32(next_chunk * chunk + k * 32 + lane)
                    i, piece = g.int32(at // (2 * half)), g.int32(at % (2 * half))
                    a, b, c, d = g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0)
                    if at < n_pieces:
                        word = g.int64(places[k]) * row_words + piece % half * 4
                        if piece < half:
                            a, b, c, d = load(near_k, far_k, i < n_resident, word)
                        else:
                            a, b, c, d = load(near_v, far_v, i < n_resident, word)
                    held[4 * k], held[4 * k + 1], held[4 * k + 2], held[4 * k + 3] = a, b, c, d
                for k in range(n_ahead):
                    at = g.int32(next_chunk * chunk + k * 32 + lane)
                    i, piece = g.int32(at // (2 * half)), g.int32(at % (2 * half))
                    if at < n_pieces:
                        word = g.int64(i) * row_words + piece % half * 4
                        a, b, c, d = held[4 * k], held[4 * k + 1], held[4 * k + 2], held[4 * k + 3]
                        if piece < half:
                            g.store_u32x4(own_k, word, a, b, c, d)
                        else:
                            g.store_u32x4(own_v, word, a, b, c, d)
                next_chunk = g.int32(next_chunk + n_warps)
            next_chunk = g.int32(next_chunk - n_chunks)

    return CudaKernel(
        kernel,
        "u32* u32* i64 u32* u32* i64 i64 u32* u32* i64 i64 i64* i64* i32 i64* i64* i64* i32* i64 i32 i32 i32",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("row of keys and values", 4 * row_bytes, 0),
    )

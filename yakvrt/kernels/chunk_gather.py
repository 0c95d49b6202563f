"""A CUDA kernel that brings together the rows that a step attends to: the tail, outliers, chosen chunks."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work

N_AHEAD = 4  # loads of 16 bytes that a lane has under way
THREADS = 256
BLOCK_BYTES = THREADS * N_AHEAD * 16


def chunk_gather_ref(
    rows: np.ndarray, outliers: np.ndarray, cache: np.ndarray, n: int, counts: tuple[int, int], page: int
) -> np.ndarray:
    """Of one head: the tail of n rows, those of outliers, and the cache. counts: of chunks that can be
    chosen, and of all.

    Shapes: rows [n, numbers] of all tokens, outliers, cache [..., numbers].
    """
    n_others, n_chunks = counts
    n_outliers = max(0, n_chunks - n_others) * page
    return np.concatenate([rows[n_chunks * page : n], outliers[:n_outliers], cache])


def chunk_gather_cuda(g: Any, row_bytes: int) -> CudaKernel:
    """chunk_gather_ref for keys and values of every head, of the cache's first n_filled places of chunks; and
    in lasts where a segment's rows end, which are at most most_rows; chunks that a prompt under way has made
    behind the slot's tokens are no chunks. The newest ring_len tokens come from a
    ring, at their positions modulo its length, those before them from the rows of all tokens, on the device
    or in pinned host memory.

    Grid: any number of blocks, of which each has BLOCK_BYTES under way.
    Shapes: tables uint32 of rows of row_bytes, strides of slots and heads in words; out_k and out_v
    [B * Hk][out_stride]; counts int32 [slots, Hk, 2]; n_filled and lasts int64 [B * Hk].
    Raises: ValueError for rows that are not multiples of 16 bytes, or larger than 1024.
    """
    if row_bytes % 16 or not 16 <= row_bytes <= 1024:
        raise ValueError(f"rows of {row_bytes} bytes cannot be gathered: use a multiple of 16 up to 1024")
    threads, n_ahead, row_words = THREADS, N_AHEAD, row_bytes // 4
    half = row_bytes // 16  # pieces of a key, which those of its value follow
    n_held, warps, burst = 4 * N_AHEAD, threads // 32, 32 * N_AHEAD

    @g.inline
    def half_of(is_key, k, v):  # type: ignore[no-untyped-def]
        return k if is_key else v

    def kernel(  # type: ignore[no-untyped-def]
        out_k, out_v, out_stride, most_rows, rows_k, rows_v, slot_stride, head_stride, ring_k, ring_v,
        ring_slot_stride, ring_head_stride, outliers_k, outliers_v, outliers_slot_stride,
        outliers_head_stride, cache_k, cache_v, cache_slot_stride, cache_head_stride, counts, most_outliers,
        n_filled, lasts, slots, positions, n_rows, n_heads, ring_len, page,
    ):  # fmt: skip
        lane = g.int32(g.thread() % 32)
        warp, n_warps = g.int32(g.block() * warps + g.thread() // 32), g.int32(g.n_blocks() * warps)
        n_segments, next_burst = g.int32(n_rows[0] * n_heads), warp
        for segment in range(g.int32(0), n_segments, g.int32(1)):
            row_index = g.int32(g.uint32(segment) // g.uint32(n_heads))
            head, slot = segment - row_index * n_heads, slots[row_index]
            size = g.int32(positions[row_index] + 1)
            of_head = (slot * n_heads + head) * 2
            n_others, n_chunks = g.int32(counts[of_head]), g.int32(counts[of_head + 1])
            n_chunks = g.int32(min(n_chunks, g.int32(g.uint32(size - 1) // g.uint32(page))))
            first = g.int32(n_chunks * page)
            n_tail = g.int32(size - first)
            n_outliers = max(g.int32(0), min(g.int32(n_chunks - n_others), g.int32(most_outliers)))
            n_resident = g.int32(n_tail + n_outliers * page)
            n = g.int32(min(g.int32(n_resident + n_filled[segment] * page), g.int32(most_rows)))
            n_pieces = g.int32(n * (2 * half))
            n_bursts = g.int32((n_pieces + burst - 1) // burst)
            at_far = slot * slot_stride + head * head_stride
            at_near = slot * ring_slot_stride + head * ring_head_stride
            at_outliers = slot * outliers_slot_stride + head * outliers_head_stride
            at_cache = slot * cache_slot_stride + head * cache_head_stride
            far_k, far_v = g.shifted(rows_k, at_far), g.shifted(rows_v, at_far)
            near_k, near_v = g.shifted(ring_k, at_near), g.shifted(ring_v, at_near)
            own_outliers_k = g.shifted(outliers_k, at_outliers)
            own_outliers_v = g.shifted(outliers_v, at_outliers)
            held_k, held_v = g.shifted(cache_k, at_cache), g.shifted(cache_v, at_cache)
            own_k = g.shifted(out_k, g.int64(segment) * out_stride)
            own_v = g.shifted(out_v, g.int64(segment) * out_stride)
            if warp == 0 and lane == 0:
                lasts[segment] = n - 1
            while next_burst < n_bursts:
                words = g.local_u32(n_held)
                for k in range(n_ahead):
                    at = g.int32(next_burst * burst + k * 32 + lane)
                    i, piece = g.int32(at // (2 * half)), g.int32(at % (2 * half))
                    is_key, place = piece < half, g.int32(first + i)
                    if i >= n_resident:
                        source, place = half_of(is_key, held_k, held_v), g.int32(i - n_resident)
                    elif i >= n_tail:
                        source = half_of(is_key, own_outliers_k, own_outliers_v)
                        place = g.int32(i - n_tail)
                    elif place < size - ring_len:
                        source = half_of(is_key, far_k, far_v)
                    else:
                        source = half_of(is_key, near_k, near_v)
                        place = g.int32(g.uint32(place) % g.uint32(ring_len))
                    a, b, c, d = g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0)
                    if at < n_pieces:
                        word = g.int64(place) * row_words + piece % half * 4
                        a, b, c, d = g.load_u32x4(source, word)
                    words[4 * k], words[4 * k + 1], words[4 * k + 2], words[4 * k + 3] = a, b, c, d
                for k in range(n_ahead):
                    at = g.int32(next_burst * burst + k * 32 + lane)
                    i, piece = g.int32(at // (2 * half)), g.int32(at % (2 * half))
                    if at < n_pieces:
                        word = g.int64(i) * row_words + piece % half * 4
                        a, b, c, d = words[4 * k], words[4 * k + 1], words[4 * k + 2], words[4 * k + 3]
                        g.store_u32x4(half_of(piece < half, own_k, own_v), word, a, b, c, d)
                next_burst = g.int32(next_burst + n_warps)
            next_burst = g.int32(next_burst - n_bursts)

    tables = "u32* u32* i64 i64"
    return CudaKernel(
        kernel,
        f"u32* u32* i64 i32 {tables} {tables} {tables} {tables} i32* i32 i64* i64* i64* i64* i64* i32 i32"
        " i32",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("row of keys and values", 4 * row_bytes, 0),
    )

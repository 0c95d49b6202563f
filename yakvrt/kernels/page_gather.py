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
    rows: np.ndarray, ring: np.ndarray, size: int, n_resident: int, pages: np.ndarray, shape: PageShape
) -> np.ndarray:
    """Of one head: first and last rows, then those of pages, counted from the first that can be chosen.

    Shapes: rows [n, numbers] of all tokens, ring [places, numbers] -> [n_resident + pages, numbers].
    """
    page, sinks, resident = shape.page, shape.n_sinks, np.arange(n_resident)
    places = np.where(resident < sinks, resident, sinks + (resident - sinks + size * page) % shape.ring_len)
    return np.concatenate([ring[places], rows[sinks + (pages[:, None] * page + np.arange(page)).reshape(-1)]])


def page_gather_cuda(g: Any, row_bytes: int, cached: bool) -> CudaKernel:
    """page_gather_ref for keys and values of every head that chooses, `sharing` of a KV head, from tables on
    the device or in pinned host memory; and in lasts where a segment's rows end. If `cached`, the pages are
    those of the cache's first places: those that are fresh come from the rows of all tokens, and remain.

    Grid: any number of blocks, of which each has BLOCK_BYTES under way.
    Shapes: tables uint32 of rows of row_bytes, strides in words; out_k and out_v [segments][out_stride];
    sizes and residents of page_lengths_cuda; counts, of pages, and lasts int64 [segments]. ids int32, from
    slots * ids_slot_stride + heads * ids_head_stride on, and fresh int32 [segments][fresh_stride] of
    page_recall_cuda, or ids [B][ids_slot_stride] of the batch, and no cache.
    Raises: ValueError for rows that are not multiples of 16 bytes, or larger than 1024.
    """
    if row_bytes % 16 or not 16 <= row_bytes <= 1024:
        raise ValueError(f"rows of {row_bytes} bytes cannot be gathered: use a multiple of 16 up to 1024")
    threads, n_ahead, row_words = THREADS, N_AHEAD, row_bytes // 4
    half = row_bytes // 16  # pieces of a key, which those of its value follow
    n_held, warps, chunk = 4 * N_AHEAD, threads // 32, 32 * N_AHEAD
    ring, far, cache = 0, 1, 2  # where a row comes from

    @g.inline
    def load(source, near, all_rows, held, word):  # type: ignore[no-untyped-def]
        if source == ring:
            return g.load_u32x4(near, word)
        if source == far:
            return g.load_u32x4(all_rows, word)
        return g.load_u32x4(held, word)

    def kernel(  # type: ignore[no-untyped-def]
        out_k, out_v, out_stride, rows_k, rows_v, slot_stride, head_stride, ring_k, ring_v, ring_slot_stride,
        ring_head_stride, cache_k, cache_v, cache_slot_stride, cache_head_stride, slots, n_rows, n_heads,
        sharing, sizes, residents, counts, lasts, ids, ids_slot_stride, ids_head_stride, fresh, fresh_stride,
        n_sinks, ring_len, page,
    ):  # fmt: skip
        lane = g.int32(g.thread() % 32)
        warp, n_warps = g.int32(g.block() * warps + g.thread() // 32), g.int32(g.n_blocks() * warps)
        n_segments, next_chunk = g.int32(n_rows[0] * n_heads), warp
        for segment in range(g.int32(0), n_segments, g.int32(1)):
            row_index = g.int32(g.uint32(segment) // g.uint32(n_heads))
            head, slot = segment - row_index * n_heads, slots[row_index]
            n_resident, size = g.int32(residents[row_index]), g.int32(sizes[segment])
            n = g.int32(n_resident + counts[segment] * page)
            n_pieces = g.int32(n * (2 * half))
            n_chunks = g.int32((n_pieces + chunk - 1) // chunk)
            owner = slot if cached else g.int64(row_index)
            own_ids = g.shifted(ids, owner * ids_slot_stride + head * ids_head_stride)
            own_fresh = g.shifted(fresh, g.int64(segment) * fresh_stride)
            kv_head = g.int32(g.uint32(head) // g.uint32(sharing))
            at_far = slot * slot_stride + kv_head * head_stride
            at_ring = slot * ring_slot_stride + kv_head * ring_head_stride
            at_cache = slot * cache_slot_stride + head * cache_head_stride
            far_k, far_v = g.shifted(rows_k, at_far), g.shifted(rows_v, at_far)
            near_k, near_v = g.shifted(ring_k, at_ring), g.shifted(ring_v, at_ring)
            held_k, held_v = g.shifted(cache_k, at_cache), g.shifted(cache_v, at_cache)
            own_k = g.shifted(out_k, g.int64(segment) * out_stride)
            own_v = g.shifted(out_v, g.int64(segment) * out_stride)
            if warp == 0 and lane == 0:
                lasts[segment] = n - 1
            while next_chunk < n_chunks:
                words, sources, places = g.local_u32(n_held), g.local_i32(n_ahead), g.local_i32(n_ahead)
                for k in range(n_ahead):  # all at once, or a row would wait for the ids of those before it
                    i = g.int32(min(next_chunk * chunk + k * 32 + lane, n_pieces - 1) // (2 * half))
                    sources[k], places[k] = ring, i
                    if i >= n_resident:
                        j = g.int32(i - n_resident)
                        of_page = g.int32(g.uint32(j) // g.uint32(page))
                        sources[k] = far
                        places[k] = g.int32(n_sinks + own_ids[of_page] * page + (j - of_page * page))
                        if cached and own_fresh[of_page] == 0:
                            sources[k], places[k] = cache, j
                    elif i >= n_sinks:
                        places[k] = g.int32(n_sinks + (i - n_sinks + size * page) % ring_len)
                for k in range(n_ahead):
                    at = g.int32(next_chunk * chunk + k * 32 + lane)
                    piece = g.int32(at % (2 * half))
                    a, b, c, d = g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0)
                    if at < n_pieces:
                        word = g.int64(places[k]) * row_words + piece % half * 4
                        if piece < half:
                            a, b, c, d = load(sources[k], near_k, far_k, held_k, word)
                        else:
                            a, b, c, d = load(sources[k], near_v, far_v, held_v, word)
                    words[4 * k], words[4 * k + 1], words[4 * k + 2], words[4 * k + 3] = a, b, c, d
                for k in range(n_ahead):
                    at = g.int32(next_chunk * chunk + k * 32 + lane)
                    i, piece = g.int32(at // (2 * half)), g.int32(at % (2 * half))
                    if at < n_pieces:
                        word = g.int64(i) * row_words + piece % half * 4
                        a, b, c, d = words[4 * k], words[4 * k + 1], words[4 * k + 2], words[4 * k + 3]
                        if piece < half:
                            g.store_u32x4(own_k, word, a, b, c, d)
                        else:
                            g.store_u32x4(own_v, word, a, b, c, d)
                        if cached and sources[k] == far:
                            word -= g.int64(n_resident) * row_words
                            if piece < half:
                                g.store_u32x4(held_k, word, a, b, c, d)
                            else:
                                g.store_u32x4(held_v, word, a, b, c, d)
                next_chunk = g.int32(next_chunk + n_warps)
            next_chunk = g.int32(next_chunk - n_chunks)

    tables = "u32* u32* i64 i64"
    return CudaKernel(
        kernel,
        f"u32* u32* i64 {tables} {tables} {tables} i64* i64* i32 i32 i64* i64* i64* i64* i32* i64 i64 i32*"
        " i64 i32 i32 i32",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("row of keys and values", 4 * row_bytes, 0),
    )

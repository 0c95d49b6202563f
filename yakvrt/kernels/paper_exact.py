"""A CUDA kernel that brings together a step's exact rows: the first ones and those behind the indexed."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work

N_AHEAD = 4  # loads of 16 bytes that a lane has under way
THREADS = 256
BLOCK_BYTES = THREADS * N_AHEAD * 16


def paper_exact_ref(
    rows: np.ndarray, ring: np.ndarray, n: int, end: int, n_sinks: int, ring_len: int
) -> np.ndarray:
    """Of one head in a slot of n tokens that is indexed up to `end`: rows in the ring from there.

    Shapes: rows [n, numbers] of all tokens, ring [n_sinks + ring_len, numbers] -> [exact rows, numbers].
    """
    positions = np.concatenate([np.arange(min(n_sinks, end)), np.arange(end, n)])
    places = np.where(positions < n_sinks, positions, n_sinks + (positions - n_sinks) % ring_len)
    near = (positions < n_sinks) | (positions >= n - ring_len)
    found: np.ndarray = np.where(near[:, None], ring[places], rows[positions])
    return found


def paper_exact_cuda(g: Any, row_bytes: int) -> CudaKernel:
    """paper_exact_ref for keys and values of every head, from tables on the device or in pinned host memory;
    and in lasts where a segment's rows end, those that are chosen among them.

    Grid: any number of blocks, of which each has BLOCK_BYTES under way.
    Shapes: tables uint32 of rows of row_bytes, strides in words; out_k and out_v [B * Hk][out_stride];
    ends and residents int64 [B] and counts int64 [B * Hk], of chosen rows, of paper_lengths_cuda; lasts int64
    [B * Hk].
    Raises: ValueError for rows that are not multiples of 16 bytes, or larger than 1024.
    """
    if row_bytes % 16 or not 16 <= row_bytes <= 1024:
        raise ValueError(f"rows of {row_bytes} bytes cannot be gathered: use a multiple of 16 up to 1024")
    threads, n_ahead, row_words = THREADS, N_AHEAD, row_bytes // 4
    half = row_bytes // 16  # pieces of a key, which those of its value follow
    n_held, warps, chunk = 4 * N_AHEAD, threads // 32, 32 * N_AHEAD

    def kernel(  # type: ignore[no-untyped-def]
        out_k, out_v, out_stride, rows_k, rows_v, slot_stride, head_stride, ring_k, ring_v, ring_slot_stride,
        ring_head_stride, slots, positions, ends, n_rows, n_heads, residents, counts, lasts, n_sinks,
        ring_len,
    ):  # fmt: skip
        lane = g.int32(g.thread() % 32)
        warp, n_warps = g.int32(g.block() * warps + g.thread() // 32), g.int32(g.n_blocks() * warps)
        n_segments, next_chunk = g.int32(n_rows[0] * n_heads), warp
        for segment in range(g.int32(0), n_segments, g.int32(1)):
            row_index = g.int32(g.uint32(segment) // g.uint32(n_heads))
            head, slot = segment - row_index * n_heads, slots[row_index]
            end, n, n_exact = (
                g.int32(ends[row_index]),
                g.int32(positions[row_index] + 1),
                g.int32(residents[row_index]),
            )
            first = g.int32(min(n_sinks, end))
            n_pieces = g.int32(n_exact * (2 * half))
            n_chunks = g.int32((n_pieces + chunk - 1) // chunk)
            at_far = slot * slot_stride + head * head_stride
            at_ring = slot * ring_slot_stride + head * ring_head_stride
            far_k, far_v = g.shifted(rows_k, at_far), g.shifted(rows_v, at_far)
            near_k, near_v = g.shifted(ring_k, at_ring), g.shifted(ring_v, at_ring)
            own_k = g.shifted(out_k, g.int64(segment) * out_stride)
            own_v = g.shifted(out_v, g.int64(segment) * out_stride)
            if warp == 0 and lane == 0:
                lasts[segment] = n_exact + counts[segment] - 1
            while next_chunk < n_chunks:
                words = g.local_u32(n_held)
                for k in range(n_ahead):
                    at = g.int32(next_chunk * chunk + k * 32 + lane)
                    i, piece = g.int32(at // (2 * half)), g.int32(at % (2 * half))
                    a, b, c, d = g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0)
                    if at < n_pieces:
                        place = i if i < first else g.int32(end + (i - first))
                        is_near = place < n_sinks or place >= n - ring_len
                        if is_near and place >= n_sinks:
                            place = g.int32(n_sinks + g.uint32(place - n_sinks) % g.uint32(ring_len))
                        word = g.int64(place) * row_words + piece % half * 4
                        if piece < half:
                            if is_near:
                                a, b, c, d = g.load_u32x4(near_k, word)
                            else:
                                a, b, c, d = g.load_u32x4(far_k, word)
                        elif is_near:
                            a, b, c, d = g.load_u32x4(near_v, word)
                        else:
                            a, b, c, d = g.load_u32x4(far_v, word)
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
                next_chunk = g.int32(next_chunk + n_warps)
            next_chunk = g.int32(next_chunk - n_chunks)

    return CudaKernel(
        kernel,
        "u32* u32* i64 u32* u32* i64 i64 u32* u32* i64 i64 i64* i64* i64* i64* i32 i64* i64* i64* i32 i32",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("row of keys and values", 4 * row_bytes, 0),
    )

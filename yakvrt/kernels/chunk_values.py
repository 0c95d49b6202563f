"""A CUDA kernel that brings the values of chosen chunks from where all rows rest into a cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work

N_AHEAD = 4  # loads of 16 bytes that a lane has under way
THREADS = 256


def chunk_values_ref(
    values: np.ndarray, cache: np.ndarray, numbers: np.ndarray, recalled: np.ndarray, fresh: np.ndarray
) -> np.ndarray:
    """The cache of one head with the values of chunk numbers[recalled[i]] in every place i that is fresh.

    Shapes: values [chunks, ...], cache [places, ...], numbers [chunks], recalled and fresh [places].
    """
    out: np.ndarray = cache.copy()
    came = np.flatnonzero(fresh)
    out[came] = values[numbers[recalled[came]]]
    return out


def chunk_values_cuda(g: Any) -> CudaKernel:
    """chunk_values_ref for every KV head of a batch, of its first n_filled places. Warps take places in turn;
    values may lie in pinned host memory.

    Grid: any number of blocks of 8 warps, of which each has 2 KB under way.
    Shapes: cache and values uint32 of chunks of 4 * pieces words, their strides, of slots and heads, in
    words; numbers and recalled int32, with strides of slots and heads; fresh int32 [B * Hk][most_places];
    n_filled int64 [B * Hk].
    """
    threads, n_ahead = THREADS, N_AHEAD
    n_held, warps = 4 * N_AHEAD, threads // 32

    def kernel(  # type: ignore[no-untyped-def]
        cache, cache_slot_stride, cache_head_stride, values, slot_stride, head_stride, numbers,
        numbers_slot_stride, numbers_head_stride, recalled, recalled_slot_stride, recalled_head_stride, fresh,
        most_places, n_filled, slots, n_rows, n_heads, pieces,
    ):  # fmt: skip
        lane = g.int32(g.thread() % 32)
        warp, n_warps = g.int32(g.block() * warps + g.thread() // 32), g.int32(g.n_blocks() * warps)
        n_units = g.int32(n_rows[0] * n_heads * most_places)
        for unit in range(warp, n_units, n_warps):
            segment = g.int32(g.uint32(unit) // g.uint32(most_places))
            place = g.int32(unit - segment * most_places)
            if place < n_filled[segment] and fresh[unit] > 0:
                row = g.int32(g.uint32(segment) // g.uint32(n_heads))
                slot, head = slots[row], segment - row * n_heads
                chunk = recalled[slot * recalled_slot_stride + head * recalled_head_stride + place]
                number = numbers[slot * numbers_slot_stride + head * numbers_head_stride + chunk]
                size = g.int64(pieces) * 4
                source = g.shifted(values, slot * slot_stride + head * head_stride + number * size)
                target = g.shifted(cache, slot * cache_slot_stride + head * cache_head_stride + place * size)
                for first in range(lane, pieces, g.int32(32 * n_ahead)):
                    held = g.local_u32(n_held)
                    for k in range(n_ahead):
                        at = g.int32(first + k * 32)
                        a, b, c, d = g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0)
                        if at < pieces:
                            a, b, c, d = g.load_u32x4(source, g.int64(at) * 4)
                        held[4 * k], held[4 * k + 1], held[4 * k + 2], held[4 * k + 3] = a, b, c, d
                    for k in range(n_ahead):
                        at = g.int32(first + k * 32)
                        if at < pieces:
                            a, b, c, d = held[4 * k], held[4 * k + 1], held[4 * k + 2], held[4 * k + 3]
                            g.store_u32x4(target, g.int64(at) * 4, a, b, c, d)

    table = "u32* i64 i64"
    return CudaKernel(
        kernel,
        f"{table} {table} i32* i64 i64 i32* i64 i64 i32* i32 i64* i64* i64* i32 i32",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("piece of 16 bytes", 32),
    )

"""What follows from the chunks of slots whose best chunks a step reads (chunk_layout.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel


def chunk_lengths_ref(
    counts: np.ndarray, wanted: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For every row of a batch and KV head: chunks that can be chosen, and that are.

    Shapes: counts int32 [B, Hk, 2], chunks that can be chosen, and all; wanted and places int64 [B].
    """
    sizes = counts[..., 0].astype(np.int64)
    return sizes, np.minimum(sizes, np.minimum(wanted, places)[:, None])


def chunk_lengths_cuda(g: Any) -> CudaKernel:
    """chunk_lengths_ref, so that a captured step needs nothing from the host but positions.

    Shapes: sizes, budgets and lengths (as sizes) int64 [B, Hk], 0 for rows that the batch lacks; firsts, 0,
    and ends, most_chunks, int64 [B]; totals int64 [2], KV heads and query heads of the batch; counts int32
    [slots, Hk, 2]; wanted and places int64 [slots].
    Grid: blocks of 128 segments, of all that a batch may have.
    """
    threads = 128

    def kernel(  # type: ignore[no-untyped-def]
        sizes, budgets, lengths, firsts, ends, totals, counts, wanted, places, slots, n_rows, capacity,
        n_heads, group, most_chunks,
    ):  # fmt: skip
        segment = g.block() * threads + g.thread()
        row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if segment == 0:
            totals[0], totals[1] = n_rows[0] * n_heads, n_rows[0] * n_heads * group
        if row < capacity:
            size, chosen = g.int64(0), g.int64(0)
            if row < n_rows[0]:
                slot, head = slots[row], segment - row * n_heads
                size = g.int64(counts[(slot * n_heads + head) * 2])
                chosen = min(g.int64(wanted[slot]), min(g.int64(places[slot]), size))
                if head == 0:
                    firsts[row], ends[row] = 0, most_chunks
            sizes[segment], budgets[segment], lengths[segment] = size, chosen, size

    return CudaKernel(
        kernel, "i64* i64* i64* i64* i64* i64* i32* i64* i64* i64* i64* i32 i32 i32 i32", threads
    )

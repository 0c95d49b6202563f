"""CUDA kernels for keys of which some turned channels stand for the whole (InfiniGen)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .attend_fragments import LEAST
from .cuda_kernel import CudaKernel, Work


def page_project_ref(x: np.ndarray, skew: np.ndarray) -> np.ndarray:
    """Shapes: x float32 [Hk, n, D], skew float32 [Hk, D, channels] -> [Hk, n, channels]."""
    return x @ skew


def page_project_cuda(g: Any, head_dim: int) -> CudaKernel:
    """page_project_ref for every row of a batch, by the matrix of its slot.

    Grid: x, heads of x, `group` of which share a KV head; y, rows.
    Shapes: out float32 [B][heads * n_channels], x float32 [B][x_stride]; skew float32 with strides of slots
    and KV heads in numbers; slots int64 [B].
    """
    threads = 64

    def kernel(  # type: ignore[no-untyped-def]
        out, x, x_stride, skew, slot_stride, head_stride, slots, n_rows, n_channels, group
    ):
        row, head, thread = g.block_y(), g.block(), g.thread()
        if row >= n_rows[0]:
            return
        given = g.shared_f32(head_dim)
        for i in range(thread, head_dim, g.int32(threads)):
            given[i] = x[g.int64(row) * x_stride + head * head_dim + i]
        g.sync_threads()
        kv_head = g.int32(g.uint32(head) // g.uint32(group))
        own = g.shifted(skew, slots[row] * slot_stride + kv_head * head_stride)
        for channel in range(thread, n_channels, g.int32(threads)):
            total = g.float32(0)
            for i in range(head_dim):
                total = g.fma(given[i], own[i * n_channels + channel], total)
            out[(g.int64(row) * g.n_blocks() + head) * n_channels + channel] = total

    return CudaKernel(
        kernel,
        "f32* f32* i32 f32* i64 i64 i64* i64* i32 i32",
        threads,
        work=Work("channel of a head", 4 * head_dim, 2 * head_dim),
    )


def page_near_ref(logits: np.ndarray, alpha: float) -> int:
    """How many logits of a query lie within alpha of its largest, on average over the queries, rounded down;
    at least 1. Shapes: [queries, n].
    """
    near = logits >= logits.max(axis=-1, keepdims=True) - np.float32(alpha)
    return max(1, int(near.sum(axis=-1).mean()))


def page_near_cuda(g: Any) -> CudaKernel:
    """Lowers the budgets of a row's KV heads to page_near_ref of all its queries, where there are pages.

    Grid: a block for each row, whose warps take queries in turn.
    Shapes: budgets and lengths int64 [B * Hk]; logits float32 [B * Hk][group][logits_stride], parts float32
    [B * Hk][group][n_parts][2] of page_scores_cuda.
    """
    threads, warps, least = 256, 8, LEAST

    def kernel(  # type: ignore[no-untyped-def]
        budgets, lengths, logits, logits_stride, parts, n_parts, alpha, n_rows, n_heads, group
    ):
        row, thread = g.block(), g.thread()
        if row >= n_rows[0]:
            return
        n = g.int32(lengths[row * n_heads])
        if n == 0:
            return
        counts = g.shared_i32(1)
        if thread == 0:
            counts[0] = 0
        g.sync_threads()
        for query in range(thread // 32, n_heads * group, g.int32(warps)):
            place = g.int64(row) * n_heads * group + query
            largest = g.float32(least)
            for part in range(g.lane(), n_parts, g.int32(32)):
                largest = max(largest, parts[(place * n_parts + part) * 2])
            bound, near = g.warp_max(largest) - alpha, g.int32(0)
            for i in range(g.lane(), n, g.int32(32)):
                if logits[place * logits_stride + i] >= bound:
                    near = g.int32(near + 1)
            g.atomic_add_i32(counts, 0, near)
        g.sync_threads()
        mean = g.int64(max(g.int32(1), g.int32(counts[0] // (n_heads * group))))
        for head in range(thread, n_heads, g.int32(threads)):
            at = row * n_heads + head
            budgets[at] = min(g.int64(budgets[at]), mean)

    return CudaKernel(kernel, "i64* i64* f32* i64 f32* i32 f32 i64* i32 i32", threads)

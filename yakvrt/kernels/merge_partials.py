"""Joins partial results of attention: out = sum_i f_i sums_i / sum_i f_i weight_i, f_i = 2^(m_i - max m).

Partials are what attend_decode_cuda describes: of the splits of a history, selected rows, a tail.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .attend_fragments import LEAST
from .cuda_kernel import CudaKernel, Work


def merge_partials_ref(sums: np.ndarray, stats: np.ndarray) -> np.ndarray:
    """In float64. Partials of weight 0 count as none, whatever their sums are.

    Shapes: sums [B, Hq, n, D], stats [B, Hq, n, 2] -> [B, Hq, D].
    """
    largest, weights = stats[..., 0].astype(np.float64), stats[..., 1].astype(np.float64)
    there = weights > 0
    top = np.where(there, largest, -np.inf).max(axis=-1, keepdims=True)
    factors = np.where(there, np.exp2(np.where(there, largest, top) - top), 0)
    known = np.where(there[..., None], sums.astype(np.float64), 0)
    joined = (factors[..., None] * known).sum(axis=2)
    return joined / (factors * weights).sum(axis=-1)[..., None]


def merge_partials_cuda(g: Any, head_dim: int) -> CudaKernel:
    """One block joins the partials of a query head; every D / 4 of its threads take each partial a share.

    Shapes: out float32 [B, out_stride], heads one behind the other; sums and stats as in merge_partials_ref.
    Grid: x, query heads; y, rows.

    Raises: ValueError.
    """
    if head_dim % 4 or not 16 <= head_dim <= 512:
        raise ValueError(f"heads of {head_dim} numbers cannot be joined: take a multiple of 4 from 16 to 512")
    threads, n_pieces, least = 128, head_dim // 4, LEAST
    n_at_once = threads // n_pieces
    n_held = n_at_once * head_dim

    def kernel(out, out_stride, sums, stats, n_partials, n_heads, n_rows):  # type: ignore[no-untyped-def]
        row, head, thread = g.block_y(), g.block(), g.thread()
        if row < n_rows[0]:
            unit = row * n_heads + head
            sums = g.shifted(sums, unit * n_partials * head_dim)
            stats = g.shifted(stats, unit * n_partials * 2)
            largest = g.float32(least)
            for i in range(thread & 31, n_partials, 32):
                if stats[2 * i + 1] > g.float32(0):
                    largest = max(largest, stats[2 * i])
            largest = g.warp_max(largest)
            held, totals = g.shared_f32(n_held), g.shared_f32(n_at_once)
            turn = g.int32(g.uint32(thread) // g.uint32(n_pieces))
            piece = thread - turn * n_pieces
            if turn < n_at_once:
                a, b, c, d = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
                total = g.float32(0)
                for i in range(turn, n_partials, n_at_once):
                    weight = stats[2 * i + 1]
                    if weight > g.float32(0):
                        factor = g.exp2(stats[2 * i] - largest)
                        x, y, z, w = g.load_f32x4(sums, i * head_dim + piece * 4)
                        a, b, c, d = a + factor * x, b + factor * y, c + factor * z, d + factor * w
                        total += factor * weight
                g.store_f32x4(held, turn * head_dim + piece * 4, a, b, c, d)
                if piece == 0:
                    totals[turn] = total
            g.sync_threads()
            if thread < n_pieces:
                a, b, c, d = g.load_f32x4(held, thread * 4)
                total = totals[0]
                for other in range(1, n_at_once):
                    x, y, z, w = g.load_f32x4(held, other * head_dim + thread * 4)
                    a, b, c, d = a + x, b + y, c + z, d + w
                    total += totals[other]
                factor = g.divide(g.float32(1), total)
                at = g.int64(row) * out_stride + head * head_dim + thread * 4
                g.store_f32x4(out, at, a * factor, b * factor, c * factor, d * factor)

    return CudaKernel(
        kernel,
        "f32* i32 f32* f32* i32 i32 i64*",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("partial", 4 * head_dim + 8, 2 * head_dim),
    )

"""Joins partial results of attention: out = sum_i f_i sums_i / sum_i f_i weight_i, f_i = 2^(m_i - max m).

Partials are of the splits of a history, of selected rows, of a tail. On a GPU they are what
attend_decode_cuda describes; on a CPU e takes the place of 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .attend_fragments import LEAST
from .cuda_kernel import CudaKernel, Work

MAX_PARTIALS = 16  # of a query head on a CPU: lanes of a vector


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


def make_put_partial(group: int, head_dim: int) -> Any:
    """An inline put_partial(sums, stats, row, head, n_kv_heads, index, state): the softmax state of a group
    of queries becomes one of the partials of their heads. See merge_partials_cpu.
    """
    from ..cpu import vector_ops as v

    head_bytes = head_dim * 4

    @v.inline
    def put_partial(
        sums: int, stats: int, row: int, head: int, n_kv_heads: int, index: int, state: int
    ) -> None:
        n_heads = n_kv_heads * group
        for g in range(group):
            unit = head * group + g
            target = sums + ((row * MAX_PARTIALS + index) * n_heads + unit) * head_bytes
            for j in range(0, head_bytes, 64):
                v.store_f32(target + j, v.load_f32(state + g * head_bytes + j))
            maxima = stats + (row * n_heads + unit) * MAX_PARTIALS * 8
            running = state + group * head_bytes + g * 8
            v.put_f32(maxima + index * 4, v.get_f32(running))
            v.put_f32(maxima + (MAX_PARTIALS + index) * 4, v.get_f32(running + 4))

    return put_partial


def make_put_none(group: int) -> Any:
    """An inline put_none(stats, row, head, n_kv_heads, first): a group has no partials from `first` on."""
    from ..cpu import vector_ops as v

    @v.inline
    def put_none(stats: int, row: int, head: int, n_kv_heads: int, first: int) -> None:
        for g in range(group):
            maxima = stats + ((row * n_kv_heads + head) * group + g) * MAX_PARTIALS * 8
            for index in range(first, MAX_PARTIALS):
                v.put_f32(maxima + index * 4, np.float32(-1e30))
                v.put_f32(maxima + (MAX_PARTIALS + index) * 4, np.float32(0))

    return put_none


def merge_partials_cpu(head_dim: int) -> Any:
    """Joins the partials of every query head: of the splits of a history, or YAKV's.

    Args: out, row_bytes, sums, stats, n_heads, n_rows*, factors (16 floats a thread), out_copy (see
    rms_norm_cpu).
    Shapes: sums float32 [B, MAX_PARTIALS, Hq, D], stats float32 [B, Hq, 2, MAX_PARTIALS]: maxima and weights.
    The first is always there; a weight of 0 says that one is not.
    """
    from ..cpu import vector_ops as v

    head_bytes = head_dim * 4

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, row_bytes = v.get_i64(args), v.get_i64(args + 8)
        sums, stats = v.get_i64(args + 16), v.get_i64(args + 24)
        n_heads, n_rows = v.get_i64(args + 32), v.get_i64(v.get_i64(args + 40))
        factors, out_copy = v.get_i64(args + 48) + thread * 64, v.get_i64(args + 56)
        out += thread * out_copy
        first, last = v.share(n_rows * n_heads, thread, n_threads, out_copy)
        for unit in range(first, last):
            row, head = unit // n_heads, unit % n_heads
            maxima, weights = stats + unit * MAX_PARTIALS * 8, stats + (2 * unit + 1) * MAX_PARTIALS * 4
            largest = v.hmax(v.load_f32(maxima))
            e = v.vexp(v.add(v.load_f32(maxima), v.splat(-largest)))
            total = v.hsum(v.mul(e, v.load_f32(weights)))
            v.store_f32(factors, v.mul(e, v.splat(np.float32(1) / total)))
            target = out + row * row_bytes + head * head_bytes
            for i in range(MAX_PARTIALS):
                if i and v.get_f32(weights + i * 4) == np.float32(0):
                    continue
                factor = v.splat(v.get_f32(factors + i * 4))
                source = sums + ((row * MAX_PARTIALS + i) * n_heads + head) * head_bytes
                for j in range(0, head_bytes, 64):
                    piece = v.mul(v.load_f32(source + j), factor)
                    v.store_f32(target + j, v.add(piece, v.load_f32(target + j)) if i else piece)

    return kernel


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

"""Attention of one new token per slot over its whole history on a GPU, split over positions.

A partial result of a query head is a sum of values [D] and the two numbers it is relative to, [largest score,
weight], scores in powers of two. Partials of any origin, of splits, selected rows or a tail, are joined by
merge_partials_cuda; a weight of 0 says that there is none.
"""

from __future__ import annotations

from typing import Any

from .attend_fragments import (
    BLOCK_HEADS,
    LEAST,
    TILE,
    check_shape,
    make_add_scores,
    make_add_values,
    make_fold,
    make_join_warps,
    make_put_queries,
    make_share_heads,
    query_words,
)
from .cuda_kernel import CudaKernel, Work

WARPS = 4
LOG2_E = 1.4426950408889634


def attend_decode_cuda(g: Any, head_dim: int, kind: str, ring: bool) -> CudaKernel:
    """Partial `first + split` of `n_partials` of every query head: the positions up to that of the row, the
    row of which was appended before, shared by `n_splits` splits in multiples of 64.

    Ring: only the first n_sinks positions and those from the end of the indexed ones on, which wrap around
    window + 64 places behind the sinks (yakv_layout.py).
    Strides count numbers; those of the caches are multiples of 8, that of q of 4. `scale` is 1 / sqrt(D).
    Shapes: sums float32 [B, Hq, n_partials, D], stats float32 [B, Hq, n_partials, 2].
    Grid: x, n_kv_heads * n_splits * head_blocks(group); y, rows.

    Raises: ValueError for shapes without a kernel.
    """
    check_shape(head_dim, kind)
    threads, step = WARPS * 32, WARPS * TILE
    put_queries = make_put_queries(
        g, head_dim, kind, WARPS, g.inline(lambda step, c: (step >> 1) * 32 + c * 8 + (step & 1) * 4)
    )
    add_scores = make_add_scores(g, kind)
    reset, fold = make_fold(g, head_dim)
    round_weights, add_values = make_add_values(g, kind)
    join_warps = make_join_warps(g, head_dim, WARPS, 8)
    share_heads = make_share_heads(g)
    n_query_words, row_words = query_words(head_dim), head_dim // 2
    n_sums = head_dim // 4
    pitch = head_dim + 4
    n_held, n_stats, tile, n_steps = BLOCK_HEADS * pitch, WARPS * 16, TILE, head_dim // 16
    # longer rows leave no registers for keys of the next tile beside these values, which come in parts
    ahead = head_dim <= 128
    load = g.load_constant_u32x4 if ahead else g.load_u32x4
    n_parts = 1 if ahead else head_dim // 64
    n_key_pieces, n_value_pieces, n_part_steps, part_words = (
        head_dim // 32 // n_parts,
        head_dim // 64 // n_parts,
        n_steps // n_parts,
        row_words // n_parts,
    )
    n_words = head_dim // 4 // n_parts
    least, log2_e = LEAST, LOG2_E

    @g.inline
    def row_at(rows, exact, last, n_sinks, start, ring_len):  # type: ignore[no-untyped-def]
        """The row of one of the exact positions, counted without gaps."""
        place = g.int32(min(exact, last))
        if ring and place >= n_sinks:
            place = g.int32(place + start)
            if place >= g.int32(n_sinks + ring_len):
                place = g.int32(place - ring_len)
        return g.shifted(rows, g.int64(place) * row_words)

    @g.inline
    def load_keys(keys, k, first, last, lane, part, n_sinks, start, ring_len):  # type: ignore[no-untyped-def]
        """Words 4 i... : step i of positions r and 8 + r."""
        r, c = lane >> 2, lane & 3
        at = c * 4 + part * part_words
        upper = g.shifted(row_at(k, g.int32(first + r), last, n_sinks, start, ring_len), at)
        lower = g.shifted(row_at(k, g.int32(first + 8 + r), last, n_sinks, start, ring_len), at)
        for i in range(n_key_pieces):
            j = i * 8
            keys[j], keys[j + 2], keys[j + 4], keys[j + 6] = load(upper, i * 16)
            keys[j + 1], keys[j + 3], keys[j + 5], keys[j + 7] = load(lower, i * 16)

    @g.inline
    def load_values(values, v, first, last, lane, part, n_sinks, start, ring_len):  # type: ignore[no-untyped-def]
        """Words 4 i... : dimensions 2 i and 2 i + 1 of this lane, of its four positions."""
        at, place = first + (lane & 3) * 2, (lane >> 2) * 4 + part * part_words
        for n in range(4):
            position = g.int32(at + n // 2 * 8 + n % 2)
            row = g.shifted(row_at(v, position, last, n_sinks, start, ring_len), place)
            for i in range(n_value_pieces):
                j = i * 16 + n
                values[j], values[j + 4], values[j + 8], values[j + 12] = load(row, i * 32)

    def kernel(  # type: ignore[no-untyped-def]
        sums, stats, first, n_partials, n_splits, q, q_stride, k_cache, v_cache, slot_stride, head_stride,
        slots, positions, n_rows, n_heads, group, scale, n_sinks, window,
    ):  # fmt: skip
        row, thread = g.block_y(), g.thread()
        if row < n_rows[0]:
            lane, warp = thread & 31, thread >> 5
            head, split, chunk_head, n_own = share_heads(g.block(), n_splits, group)
            length, start, ring_len = g.int32(positions[row] + 1), g.int32(0), g.int32(0)
            if ring:
                n_indexed = g.int32(max(0, length - 1 - n_sinks - window) // 64 * 64)
                length, ring_len = g.int32(length - n_indexed), g.int32(window + 64)
                start = g.int32(n_indexed % ring_len)
            share = g.int32(g.uint32(length + n_splits * step - 1) // g.uint32(n_splits * step) * step)
            begin, end = g.int32(split * share), g.int32(min((split + 1) * share, length))
            first_head = g.int32(head * group + chunk_head)
            unit = row * n_heads * group + first_head
            partial = first + split
            if begin >= end:
                if thread < n_own:
                    at = ((unit + thread) * n_partials + partial) * 2
                    stats[at], stats[at + 1] = g.float32(least), g.float32(0)
            else:
                fragments = g.shared_u32(n_query_words)
                own = g.shifted(q, row * q_stride + first_head * head_dim)
                put_queries(fragments, own, n_own, scale * g.float32(log2_e), thread)
                base = (slots[row] * slot_stride + head * head_stride) // 2
                k, v = g.shifted(k_cache, base), g.shifted(v_cache, base)
                held, state = g.local_f32(n_sums), g.local_f32(4)
                reset(held, state)
                g.sync_threads()
                last = g.int32(end - 1)
                keys, values = g.local_u32(n_words), g.local_u32(n_words)
                if ahead:
                    load_keys(keys, k, begin + warp * tile, last, lane, 0, n_sinks, start, ring_len)
                for tile_at in range(begin + warp * tile, end, step):
                    position = g.int32(tile_at)
                    if ahead:
                        load_values(values, v, position, last, lane, 0, n_sinks, start, ring_len)
                    s = g.local_f32(4)
                    for i in range(4):
                        s[i] = g.float32(0)
                    for part in range(n_parts):
                        if not ahead:
                            load_keys(keys, k, position, last, lane, part, n_sinks, start, ring_len)
                        for i in range(n_part_steps):
                            b0, b1, b2, b3 = keys[4 * i], keys[4 * i + 1], keys[4 * i + 2], keys[4 * i + 3]
                            add_scores(s, fragments, part * n_part_steps + i, lane, b0, b1, b2, b3)
                        if not ahead:
                            g.sync_warp()  # and no earlier loads of the next part
                    if ahead:
                        load_keys(keys, k, position + step, last, lane, 0, n_sinks, start, ring_len)
                    fold(s, g.int32(end - position), lane, held, state)
                    w = g.local_u32(4)
                    round_weights(w, s)
                    for part in range(n_parts):
                        if not ahead:
                            load_values(values, v, position, last, lane, part, n_sinks, start, ring_len)
                        for i in range(n_part_steps):
                            b0, b1, b2, b3 = (
                                values[4 * i],
                                values[4 * i + 1],
                                values[4 * i + 2],
                                values[4 * i + 3],
                            )
                            add_values(held, part * n_part_steps + i, w, b0, b1, b2, b3)
                        if not ahead:
                            g.sync_warp()  # and no earlier loads of the next part
                joined, shared_stats = g.shared_f32(n_held), g.shared_f32(n_stats)
                join_warps(joined, pitch, shared_stats, n_own, held, state, thread)
                for i in range(thread * 4, n_own * head_dim, threads * 4):
                    own_head = g.int32(g.uint32(i) // g.uint32(head_dim))
                    dim = i - own_head * head_dim
                    a, b, d, e = g.load_f32x4(joined, own_head * pitch + dim)
                    place = ((unit + own_head) * n_partials + partial) * head_dim + dim
                    g.store_f32x4(sums, place, a, b, d, e)
                if thread < n_own:
                    at = ((unit + thread) * n_partials + partial) * 2
                    stats[at], stats[at + 1] = shared_stats[thread * 2], shared_stats[thread * 2 + 1]

    return CudaKernel(
        kernel,
        "f32* f32* i32 i32 i32 f32* i32 u32* u32* i64 i64 i64* i64* i64* i32 i32 f32 i32 i32",
        threads,
        opcodes=("LDG.E.128", "HMMA.16816.F32", "LDS.128", "STG.E.128"),
        work=Work("position of a kv head with 8 query heads", 4 * head_dim, 32 * head_dim),
        resident_blocks=3 if ahead else 2,
    )

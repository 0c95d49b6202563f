"""Attention of one new token per slot over its whole history, split over positions (as FlashDecoding does).

How a history is split depends on its length alone: the result is the same for every number of threads.
"""

from __future__ import annotations

from typing import Any

from .merge_partials import MAX_PARTIALS, make_put_none, make_put_partial

MIN_SPLIT = 64  # positions


def split_len_of(length: int) -> int:
    """Positions per split: a multiple of 16, at least MIN_SPLIT, so that MAX_PARTIALS of them hold `length`.

    Plain Python for the tests, compiled into the kernel.
    """
    return max(MIN_SPLIT, (length + 16 * MAX_PARTIALS - 1) // (16 * MAX_PARTIALS) * 16)


def attend_decode_cpu(group: int, head_dim: int, kind: str) -> Any:
    """Appends k and v of every row at its slot and position, then attends.

    Args: sums, stats, q, k, v, q_stride, kv_stride, k_cache, v_cache, slot_stride, head_stride, slots,
    positions, n_rows*, n_kv_heads, scale*, scratch, scratch_stride, q_copy, k_copy (see rms_norm_cpu).
    Threads share (split, kv head) items. Splits are partials, sums and stats as in merge_partials_cpu.
    """
    from ..cpu import vector_ops as v
    from ..cpu.attention_tiles import make_scores, make_weighted_sum
    from ..cpu.simd import ELEMENT_BYTES
    from .attend import CHUNK, make_accumulate
    from .kv_append import make_append

    scores_of = make_scores(group, head_dim, kind, prefetch=True)
    add_values = make_weighted_sum(group, head_dim, kind, prefetch=True)
    reset, fold = make_accumulate(group, head_dim)
    append, split_len_in = make_append(head_dim, kind), v.inline(split_len_of)
    put_partial, put_none = make_put_partial(group, head_dim), make_put_none(group)
    position_bytes = head_dim * ELEMENT_BYTES[kind]
    head_bytes = head_dim * 4

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        sums, stats = v.get_i64(args), v.get_i64(args + 8)
        q = v.get_i64(args + 16) + thread * v.get_i64(args + 144)
        k, values = v.get_i64(args + 24) + thread * v.get_i64(args + 152), v.get_i64(args + 32)
        q_stride, kv_stride = v.get_i64(args + 40), v.get_i64(args + 48)
        k_cache, v_cache = v.get_i64(args + 56), v.get_i64(args + 64)
        slot_stride, head_stride = v.get_i64(args + 72), v.get_i64(args + 80)
        slots, positions = v.get_i64(args + 88), v.get_i64(args + 96)
        n_rows, n_kv_heads = v.get_i64(v.get_i64(args + 104)), v.get_i64(args + 112)
        scale = v.splat(v.get_f32(v.get_i64(args + 120)))
        queries = v.get_i64(args + 128) + thread * v.get_i64(args + 136)
        state = queries + group * head_bytes
        scores = state + group * (head_bytes + 8)
        for row in range(n_rows):
            length = v.get_i64(positions + row * 8) + 1
            split_len = split_len_in(length)
            n_splits = (length + split_len - 1) // split_len
            first, last = v.share(n_splits * n_kv_heads, thread, n_threads, 0)
            for item in range(first, last):
                head, split = item // n_splits, item % n_splits  # what follows lies behind in memory
                begin, end = split * split_len, min((split + 1) * split_len, length)
                base = v.get_i64(slots + row * 8) * slot_stride + head * head_stride
                if end == length:  # who reads the newest position has written it
                    source = row * kv_stride + head * head_bytes
                    append(k_cache + base, v_cache + base, k + source, values + source, length - 1)
                source = q + row * q_stride + head * group * head_bytes
                for j in range(0, group * head_bytes, 64):
                    v.store_f32(queries + j, v.mul(v.load_f32(source + j), scale))
                reset(state)
                for chunk in range(begin, end, CHUNK):
                    n_positions = min(CHUNK, end - chunk)
                    n_lanes = (n_positions + 15) // 16 * 16
                    keys = k_cache + base + chunk * position_bytes
                    scores_of(keys, n_lanes // 16, queries, scores, CHUNK * 4)
                    for g in range(group):
                        fold(scores + g * CHUNK * 4, n_positions, n_lanes, state, g)
                    add_values(v_cache + base + chunk * position_bytes, n_positions, scores, CHUNK * 4, state)
                put_partial(sums, stats, row, head, n_kv_heads, split, state)
                if split == 0:
                    put_none(stats, row, head, n_kv_heads, n_splits)

    return kernel

"""Third pass of a YAKV decode step: the selected rows are decoded and attended to, in runs, and the tail is
added.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .higgs_layout import ROW_FORMATS, row_bytes
from .merge_partials import MAX_PARTIALS, make_put_none, make_put_partial
from .select_topk import select_topk_ref, weights_ref
from .yakv_layout import (
    BLOCKS_PER_RUN,
    FIRST_RUN,
    YakvShape,
    make_address,
    make_pool_addresses,
    pool_word,
    run_len,
)
from .yakv_tail import make_add_tail, make_logits_of, make_run_weights, run_weights_bytes

ROWS_AT_ONCE = 64


def attend_yakv_ref(
    q: np.ndarray,
    exact: tuple[np.ndarray, np.ndarray],
    logits: np.ndarray,
    indexed: tuple[np.ndarray, np.ndarray],
    mean_values: np.ndarray,
    budget: int,
    rule: str,
    tail: float | np.ndarray,
    *,
    residual: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """One step of one KV head in float64: the output of its queries and the selected ids.

    Shapes: q [G, D]; exact keys and values [E, D]; selector logits [G, n]; indexed keys and values as decoded
    [n, D]; mean_values [n / 64, D] -> out [G, D], ids [min(budget, n)]. tail: the part of the mass of the
    rows not selected that counts, one number or [G]. With `residual` indexed keys are what is added to the
    logits.
    """
    scale = q.shape[1] ** -0.5
    exact_logits = q.astype(np.float64) @ exact[0].T.astype(np.float64) * scale
    lse = np.log(np.exp(exact_logits).sum(axis=1) + np.exp(logits.astype(np.float64)).sum(axis=1))
    ids = select_topk_ref(weights_ref(logits, lse, rule), budget)
    chosen_logits = q.astype(np.float64) @ indexed[0][ids].T * scale + (logits[:, ids] if residual else 0)
    weights = np.hstack([np.exp(exact_logits), np.exp(chosen_logits)])
    total = weights.sum(axis=1, keepdims=True)
    sums = weights @ np.vstack([exact[1], indexed[1][ids]]).astype(np.float64)
    if np.any(tail):
        rest = np.exp(logits.astype(np.float64))
        rest[:, ids] = 0
        mass = np.reshape(tail, (-1, 1)) * rest.reshape(len(q), -1, 64).sum(axis=2)
        total = total + mass.sum(axis=1, keepdims=True)
        sums = sums + mass @ mean_values.astype(np.float64)
    return sums / total, ids


def attend_rows_scratch_bytes(group: int, head_dim: int, n_tokens: int) -> int:
    """Scratch of a thread: queries, offsets, a softmax state, scores; decoded rows, or run weights."""
    floats = group * (2 * head_dim + 2 + 2 * ROWS_AT_ONCE)
    runs = group * run_weights_bytes(-(-n_tokens // (64 * BLOCKS_PER_RUN)))
    return floats * 4 + 4 * 64 + max(ROWS_AT_ONCE * head_dim * 4, runs)


def yakv_attend_cpu(*parameters: Any) -> Any:
    """Threads share (kv head, a run of selected rows or the tail).

    Args: pools, q, q_stride, slots, positions, n_rows*, scale*, weights, weights_stride, run_stats, n_runs,
    block_sums, sums, stats, ids, ids_stride, counts, scratch, scratch_stride, q_copy (see rms_norm_cpu),
    places (where selected rows lie in the pool of rows: the ids themselves, or places of a cache), ratio,
    at_least, min_len. The tail is partial 1 of sums and stats, runs are partials 2, 3, ...; other shapes as
    in yakv_score_cpu and yakv_select_cpu, which other threads may still be at: a head's count is waited for.
    """
    from ..cpu import vector_ops as v
    from ..cpu.attention_tiles import make_weighted_sum
    from ..cpu.row_scores import make_row_scores
    from .attend import make_accumulate
    from .higgs_rows import make_decode_row
    from .rotate import make_rotate
    from .team import make_wait_for
    from .yakv_select import make_lengths

    shape = YakvShape(*parameters)
    group, head_dim, weight_rows, tail = shape.group, shape.head_dim, shape.weight_rows, shape.tail
    n_sinks, window = shape.n_sinks, shape.window
    run_weights, add_tail = make_run_weights(group), make_add_tail(group, head_dim)
    logits_of, residual = make_logits_of(group), ROW_FORMATS[shape.k_format].residual
    decode_k, decode_v = make_decode_row(shape.k_format, head_dim), make_decode_row(shape.v_format, head_dim)
    row_scores, add_values = make_row_scores(head_dim), make_weighted_sum(group, head_dim, "f32")
    reset, fold = make_accumulate(group, head_dim)
    put_partial, put_none = make_put_partial(group, head_dim), make_put_none(group)
    rotate, unrotate = make_rotate(head_dim), make_rotate(head_dim, inverse=True)
    _, _, _, rows_of, scales_of, values_of, mean_of = make_pool_addresses(shape)
    parts_of = make_address("tail_parts")
    run_len_of, lengths, wait_for = v.inline(run_len), make_lengths(n_sinks, window), make_wait_for()
    stride = row_bytes(head_dim, shape.k_format, shape.v_format)
    k_rotated, v_rotated = (ROW_FORMATS[name].rotated for name in (shape.k_format, shape.v_format))
    v_codes = ROW_FORMATS[shape.k_format].n_bytes(head_dim)
    add_mean = shape.centred and k_rotated and not residual
    k_tables_at, v_tables_at, heads_at = pool_word("k_tables"), pool_word("v_tables"), pool_word("n_kv_heads")
    row_floats, score_bytes = head_dim * 4, ROWS_AT_ONCE * 4
    at_once = ROWS_AT_ONCE

    @v.inline
    def prepare(q: int, scale: float, mean: int, queries: int, offsets: int) -> None:
        """Scaled queries in the domain of the keys, and what the mean key adds to every logit."""
        factor = v.splat(scale)
        for g in range(group):
            source, target, offset = q + g * row_floats, queries + g * row_floats, v.zero()
            for j in range(0, row_floats, 64):
                piece = v.mul(v.load_f32(source + j), factor)
                v.store_f32(target + j, piece)
                if add_mean:
                    offset = v.fma(piece, v.load_f32(mean + j), offset)
            v.put_f32(offsets + g * score_bytes, v.hsum(offset))
            if k_rotated:
                rotate(target, target)

    @v.inline
    def dot_products(rows: int, n: int, queries: int, offsets: int, scores: int) -> None:
        for first in range(0, n, 16):  # fold() does not read what comes behind the last row
            for g in range(group):
                found, at = row_scores(rows + first * row_floats, queries + g * row_floats), g * score_bytes
                known = v.load_f32(offsets + at + first * 4) if residual else v.splat(v.get_f32(offsets + at))
                v.store_f32(scores + at + first * 4, v.add(found, known))

    @v.inline
    def ask_for(places: int, first: int, last: int, codes: int, scales: int) -> None:
        """Prefetches rows, which lie anywhere in memory."""
        for i in range(first, last):
            row = codes + v.get_i32(places + i * 4) * stride
            for line in range(0, stride, 64):
                v.prefetch(row + line)
            v.prefetch(row + stride - 1)
            v.prefetch(scales + v.get_i32(places + i * 4) * 4)

    @v.inline
    def attend_run(
        places: int,
        ids: int,
        n: int,
        weights: int,
        weights_stride: int,
        run_stats: int,
        codes: int,
        scales: int,
        k_tables: int,
        v_tables: int,
        queries: int,
        state: int,
        scores: int,
        rows: int,
        offsets: int,
    ) -> None:
        """Folds up to 64 rows into the state."""
        for i in range(n):
            place = v.get_i32(places + i * 4)
            decode_k(rows + i * row_floats, codes + place * stride, v.get_f16(scales + place * 4), k_tables)
        if residual:
            logits_of(offsets, scores, score_bytes, ids, n, weights, weights_stride, run_stats)
        dot_products(rows, n, queries, offsets, scores)
        for g in range(group):
            fold(scores + g * score_bytes, n, (n + 15) // 16 * 16, state, g)
        for i in range(n):
            place = v.get_i32(places + i * 4)
            source, scale = codes + place * stride + v_codes, v.get_f16(scales + place * 4 + 2)
            decode_v(rows + i * row_floats, source, scale, v_tables)
        add_values(rows, n, scores, score_bytes, state)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        pools = v.get_i64(args)
        q = v.get_i64(args + 8) + thread * v.get_i64(args + 152)
        q_stride, slots, positions = v.get_i64(args + 16), v.get_i64(args + 24), v.get_i64(args + 32)
        n_rows, scale = v.get_i64(v.get_i64(args + 40)), v.get_f32(v.get_i64(args + 48))
        weights, weights_stride = v.get_i64(args + 56), v.get_i64(args + 64)
        run_stats, max_runs, block_sums = v.get_i64(args + 72), v.get_i64(args + 80), v.get_i64(args + 88)
        sums, stats = v.get_i64(args + 96), v.get_i64(args + 104)
        ids, ids_stride, counts = v.get_i64(args + 112), v.get_i64(args + 120), v.get_i64(args + 128)
        places, ratio = v.get_i64(args + 160), v.get_i64(args + 168)
        at_least, min_len = v.get_i64(args + 176), v.get_i64(args + 184)
        queries = v.get_i64(args + 136) + thread * v.get_i64(args + 144)
        state = queries + group * row_floats
        scores = state + (group * (row_floats + 8) + 63) // 64 * 64
        offsets = scores + group * score_bytes
        rows = offsets + group * score_bytes
        n_heads = v.get_i64(pools + heads_at)
        k_tables, v_tables = v.get_i64(pools + k_tables_at), v.get_i64(pools + v_tables_at)
        for row in range(n_rows):
            slot = v.get_i64(slots + row * 8)
            n_indexed, n_selected = lengths(v.get_i64(positions + row * 8), ratio, at_least, min_len)
            run_rows = run_len_of(n_selected)
            per_head = 1 + (n_selected + run_rows - 1) // run_rows
            n_units = n_heads * per_head
            behind, to_end = v.share(n_units, n_threads - 1 - thread, n_threads, 0)
            first, last = n_units - to_end, n_units - behind  # more for the first, who select for fewer heads
            ready = -1
            for unit in range(first, last):
                head, run = unit // per_head, unit % per_head
                own = row * n_heads + head
                own_weights = weights + own * weight_rows * weights_stride
                own_runs = run_stats + own * max_runs * group * 8
                wait_for(counts + own * 8, 0)
                reset(state)
                if run == per_head - 1:  # the tail, near who selected, which takes all weights
                    if tail and n_selected < n_indexed:
                        n_blocks = n_indexed // 64
                        n_scored = (n_blocks + BLOCKS_PER_RUN - 1) // BLOCKS_PER_RUN
                        own_stats = stats + own * group * MAX_PARTIALS * 8
                        runs_stride = run_weights(rows, own_stats, own_runs, n_scored)
                        add_tail(
                            state,
                            values_of(pools, slot, head),
                            parts_of(pools, slot, head),
                            own_weights,
                            weights_stride,
                            block_sums + own * group * max_runs * 64,
                            max_runs * 64,
                            rows,
                            runs_stride,
                            n_blocks,
                            ids + own * ids_stride,
                            n_selected,
                        )
                    put_partial(sums, stats, row, head, n_heads, 1, state)
                    put_none(stats, row, head, n_heads, FIRST_RUN + per_head - 1)
                    continue
                codes, scales = rows_of(pools, slot, head), scales_of(pools, slot, head)
                own_places, own_ids = places + own * ids_stride, ids + own * ids_stride
                begin, end = run * run_rows, min((run + 1) * run_rows, n_selected)
                last_own = min((last - head * per_head) * run_rows, n_selected)  # of this thread
                if ready != head:
                    ask_for(own_places, begin, min(begin + at_once, end), codes, scales)
                    source = q + row * q_stride + head * group * row_floats
                    prepare(source, scale, mean_of(pools, slot, head), queries, offsets)
                    ready = head
                for start in range(begin, end, at_once):
                    stop = min(start + at_once, end)
                    ask_for(own_places, stop, min(stop + at_once, last_own), codes, scales)
                    attend_run(
                        own_places + start * 4,
                        own_ids + start * 4,
                        stop - start,
                        own_weights,
                        weights_stride,
                        own_runs,
                        codes,
                        scales,
                        k_tables,
                        v_tables,
                        queries,
                        state,
                        scores,
                        rows,
                        offsets,
                    )
                if v_rotated:
                    for g in range(group):
                        unrotate(state + g * row_floats, state + g * row_floats)
                put_partial(sums, stats, row, head, n_heads, 2 + run, state)

    return kernel

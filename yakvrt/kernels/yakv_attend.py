"""Third pass of a YAKV decode step: the selected rows are decoded and attended to, in runs; then all partial
results of a query head are joined.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .higgs_layout import ROW_FORMATS, row_bytes
from .select_topk import select_topk_ref, weights_ref
from .yakv_layout import FIRST_RUN, MAX_PARTIALS, YakvShape, make_pool_addresses, pool_word, run_len

ROWS_AT_ONCE = 64


def attend_yakv_ref(
    q: np.ndarray,
    exact: tuple[np.ndarray, np.ndarray],
    logits: np.ndarray,
    indexed: tuple[np.ndarray, np.ndarray],
    mean_values: np.ndarray,
    budget: int,
    rule: str,
    tail: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """One step of one KV head in float64: the output of its queries and the selected ids.

    Shapes: q [G, D]; exact keys and values [E, D]; selector logits [G, n]; indexed keys and values as decoded
    [n, D]; mean_values [n / 64, D] -> out [G, D], ids [min(budget, n)].
    """
    scale = q.shape[1] ** -0.5
    exact_logits = q.astype(np.float64) @ exact[0].T.astype(np.float64) * scale
    lse = np.log(np.exp(exact_logits).sum(axis=1) + np.exp(logits.astype(np.float64)).sum(axis=1))
    ids = select_topk_ref(weights_ref(logits, lse, rule), budget)
    chosen_logits = q.astype(np.float64) @ indexed[0][ids].T * scale
    weights = np.hstack([np.exp(exact_logits), np.exp(chosen_logits)])
    total = weights.sum(axis=1, keepdims=True)
    sums = weights @ np.vstack([exact[1], indexed[1][ids]]).astype(np.float64)
    if tail:
        rest = np.exp(logits.astype(np.float64))
        rest[:, ids] = 0
        mass = rest.reshape(len(q), -1, 64).sum(axis=2)
        total = total + mass.sum(axis=1, keepdims=True)
        sums = sums + mass @ mean_values.astype(np.float64)
    return sums / total, ids


def attend_rows_scratch_bytes(group: int, head_dim: int) -> int:
    """Scratch of a thread: queries, their offsets, a softmax state, scores, decoded rows."""
    floats = group * (2 * head_dim + 2 + ROWS_AT_ONCE) + ROWS_AT_ONCE * head_dim
    return floats * 4 + 4 * 64 + group * 4


def yakv_attend_cpu(*parameters: Any) -> Any:
    """Threads share (kv head, run of selected rows).

    Args: pools, q, q_stride, slots, n_rows*, scale*, sums, stats, ids, ids_stride, counts, scratch,
    scratch_stride, q_copy (see rms_norm_cpu). Runs are partials 2, 3, ... of sums and stats.
    """
    from ..cpu import vector_ops as v
    from ..cpu.attention_tiles import make_weighted_sum
    from .attend import make_accumulate
    from .higgs_rows import make_decode_row
    from .rotate import make_rotate
    from .yakv_score import make_put_partial

    shape = YakvShape(*parameters)
    group, head_dim = shape.group, shape.head_dim
    decode_k, decode_v = make_decode_row(shape.k_format, head_dim), make_decode_row(shape.v_format, head_dim)
    add_values = make_weighted_sum(group, head_dim, "f32")
    reset, fold = make_accumulate(group, head_dim)
    put_partial = make_put_partial(group, head_dim)
    rotate, unrotate = make_rotate(head_dim), make_rotate(head_dim, inverse=True)
    _, _, _, rows_of, scales_of, _, mean_of = make_pool_addresses(shape)
    run_len_of = v.inline(run_len)
    stride = row_bytes(head_dim, shape.k_format, shape.v_format)
    k_rotated, v_rotated = (ROW_FORMATS[name].rotated for name in (shape.k_format, shape.v_format))
    v_codes = ROW_FORMATS[shape.k_format].n_bytes(head_dim)
    add_mean = shape.centred and k_rotated
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
            v.put_f32(offsets + g * 4, v.hsum(offset))
            if k_rotated:
                rotate(target, target)

    @v.inline
    def dot_products(rows: int, n: int, queries: int, offsets: int, scores: int) -> None:
        for i in range(n):
            for g in range(group):
                total = v.zero()
                for j in range(0, row_floats, 64):
                    total = v.fma(
                        v.load_f32(rows + i * row_floats + j), v.load_f32(queries + g * row_floats + j), total
                    )
                v.put_f32(scores + g * score_bytes + i * 4, v.hsum(total) + v.get_f32(offsets + g * 4))

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        pools = v.get_i64(args)
        q = v.get_i64(args + 8) + thread * v.get_i64(args + 104)
        q_stride, slots, n_rows = v.get_i64(args + 16), v.get_i64(args + 24), v.get_i64(v.get_i64(args + 32))
        scale, sums, stats = v.get_f32(v.get_i64(args + 40)), v.get_i64(args + 48), v.get_i64(args + 56)
        ids, ids_stride, counts = v.get_i64(args + 64), v.get_i64(args + 72), v.get_i64(args + 80)
        queries = v.get_i64(args + 88) + thread * v.get_i64(args + 96)
        state = queries + group * row_floats
        scores = state + (group * (row_floats + 8) + 63) // 64 * 64
        rows = scores + group * score_bytes
        offsets = rows + at_once * row_floats
        n_heads = v.get_i64(pools + heads_at)
        k_tables, v_tables = v.get_i64(pools + k_tables_at), v.get_i64(pools + v_tables_at)
        for row in range(n_rows):
            slot = v.get_i64(slots + row * 8)
            n_selected = v.get_i64(counts + row * n_heads * 8)  # the same for every head
            if n_selected == 0:
                continue
            run_rows = run_len_of(n_selected)
            n_runs = (n_selected + run_rows - 1) // run_rows
            first, last = v.share(n_heads * n_runs, thread, n_threads, 0)
            ready = -1
            for unit in range(first, last):
                head, run = unit // n_runs, unit % n_runs
                if ready != head:
                    source = q + row * q_stride + head * group * row_floats
                    prepare(source, scale, mean_of(pools, slot, head), queries, offsets)
                    ready = head
                codes, scales = rows_of(pools, slot, head), scales_of(pools, slot, head)
                own_ids = ids + (row * n_heads + head) * ids_stride
                reset(state)
                for start in range(run * run_rows, min((run + 1) * run_rows, n_selected), at_once):
                    n = min(at_once, (run + 1) * run_rows - start, n_selected - start)
                    for i in range(n):
                        index = v.get_i32(own_ids + (start + i) * 4)
                        decode_k(
                            rows + i * row_floats,
                            codes + index * stride,
                            v.get_f16(scales + index * 4),
                            k_tables,
                        )
                    dot_products(rows, n, queries, offsets, scores)
                    for g in range(group):
                        fold(scores + g * score_bytes, n, (n + 15) // 16 * 16, state, g)
                    for i in range(n):
                        index = v.get_i32(own_ids + (start + i) * 4)
                        decode_v(
                            rows + i * row_floats,
                            codes + index * stride + v_codes,
                            v.get_f16(scales + index * 4 + 2),
                            v_tables,
                        )
                    add_values(rows, n, scores, score_bytes, state)
                if v_rotated:
                    for g in range(group):
                        unrotate(state + g * row_floats, state + g * row_floats)
                put_partial(sums, stats, row, head, n_heads, 2 + run, state)

    return kernel


def merge_partials_cpu(group: int, head_dim: int) -> Any:
    """Joins the partial softmax results of every query head.

    Args: out, row_bytes, sums, stats, counts (selected rows, int64 [B, Hk]), n_heads, n_rows*, factors
    (16 floats a thread), out_copy (see rms_norm_cpu).
    Shapes: sums float32 [B, 16, Hq, D], stats float32 [B, Hq, 2, 16]: maxima and weights of the partials.
    """
    from ..cpu import vector_ops as v

    run_len_of = v.inline(run_len)
    head_bytes = head_dim * 4

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, row_bytes = v.get_i64(args), v.get_i64(args + 8)
        sums, stats, counts = v.get_i64(args + 16), v.get_i64(args + 24), v.get_i64(args + 32)
        n_heads, n_rows = v.get_i64(args + 40), v.get_i64(v.get_i64(args + 48))
        factors, out_copy = v.get_i64(args + 56) + thread * 64, v.get_i64(args + 64)
        out += thread * out_copy
        first, last = v.share(n_rows * n_heads, thread, n_threads, out_copy)
        for unit in range(first, last):
            row, head = unit // n_heads, unit % n_heads
            n_selected = v.get_i64(counts + row * (n_heads // group) * 8)
            run_rows = run_len_of(n_selected)
            n_partials = FIRST_RUN + (n_selected + run_rows - 1) // run_rows
            maxima = stats + unit * MAX_PARTIALS * 8
            weights = maxima + MAX_PARTIALS * 4
            largest = v.get_f32(maxima)
            for i in range(1, n_partials):
                largest = max(largest, v.get_f32(maxima + i * 4))
            total = np.float32(0)
            for i in range(n_partials):
                factor = v.scalar_exp(v.get_f32(maxima + i * 4) - largest)
                v.put_f32(factors + i * 4, factor)
                total += factor * v.get_f32(weights + i * 4)
            inverse = np.float32(1) / total
            target = out + row * row_bytes + head * head_bytes
            for i in range(n_partials):
                factor = v.splat(v.get_f32(factors + i * 4) * inverse)
                source = sums + ((row * MAX_PARTIALS + i) * n_heads + head) * head_bytes
                for j in range(0, head_bytes, 64):
                    piece = v.mul(v.load_f32(source + j), factor)
                    v.store_f32(target + j, v.add(piece, v.load_f32(target + j)) if i else piece)

    return kernel

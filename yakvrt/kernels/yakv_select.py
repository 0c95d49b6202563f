"""Second pass of a YAKV decode step: the rows with the largest estimated probability."""

from __future__ import annotations

from typing import Any

import numpy as np

from .select_topk import keys_bytes, select_scratch_bytes
from .yakv_layout import BLOCKS_PER_RUN, indexed_end, pool_word, weight_rows
from .yakv_tail import RUN_HEADER, run_weights_bytes

NOT_YET = -1  # in place of a head's number of selected rows
RATIO_BITS = 20  # a budget ratio is a whole number of 2^-20


def budget_of(n: int, n_indexed: int, ratio: int, at_least: int, min_len: int) -> int:
    """Rows selected per head in a slot of n tokens: ratio / 2^20 of them and at least `at_least`; all up
    to min_len tokens.
    """
    if n <= min_len:
        return n_indexed
    return min(n_indexed, max(at_least, n * ratio >> 20))


def select_rows_scratch_bytes(group: int, n_tokens: int) -> int:
    """Scratch of a thread: run weights, keys, their selection."""
    n_runs = -(-n_tokens // (64 * BLOCKS_PER_RUN))
    selection = -(-select_scratch_bytes(n_tokens) // 64) * 64
    return group * run_weights_bytes(n_runs) + keys_bytes(n_tokens) + selection


def make_rank(group: int, rule: str) -> Any:
    """An inline rank(keys, weights, weights_stride, runs, runs_stride, n): sort keys of n tokens of a head.

    Shapes: weights as in yakv_score_cpu, runs as make_run_weights leaves them: they become the weights of
    probabilities.
    """
    from ..cpu import largest
    from ..cpu import vector_ops as v
    from .select_topk import make_pad

    as_mean, as_sum = rule == "mean", rule == "sum"
    pad, run_bytes, header = make_pad(), BLOCKS_PER_RUN * 256, RUN_HEADER

    @v.inline
    def rank(keys: int, weights: int, weights_stride: int, runs: int, runs_stride: int, n: int) -> None:
        pad(keys, n)
        if as_mean:
            for j in range(0, n * 4, 64):
                largest.store_keys(keys + j, v.load_f32(weights + group * weights_stride + j), 16)
            return
        n_runs = (n * 4 + run_bytes - 1) // run_bytes
        for g in range(group):
            own = runs + g * runs_stride
            inverse = np.float32(1) / v.get_f32(own + 4)
            for run in range(n_runs):
                v.put_f32(own + header + run * 4, v.get_f32(own + header + run * 4) * inverse)
        for run in range(n_runs):
            own = runs + header + run * 4
            for j in range(run * run_bytes, min((run + 1) * run_bytes, n * 4), 64):
                total = v.zero()
                for g in range(group):
                    piece = v.load_bf16(weights + g * weights_stride + j // 2)
                    factor = v.splat(v.get_f32(own + g * runs_stride))
                    total = v.fma(piece, factor, total) if as_sum else v.vmax(v.mul(piece, factor), total)
                largest.store_keys(keys + j, total, 16)

    return rank


def make_lengths(n_sinks: int, window: int) -> Any:
    """An inline lengths(position, ratio, at_least, min_len): how many rows are indexed in a slot with a token
    at this position, and how many of them to select.
    """
    from ..cpu import vector_ops as v

    end_of, budget_in = v.inline(indexed_end), v.inline(budget_of)

    @v.inline
    def lengths(position: int, ratio: int, at_least: int, min_len: int) -> Any:
        n = end_of(position, n_sinks, window) - n_sinks
        return n, budget_in(position + 1, n, ratio, at_least, min_len)

    return lengths


def yakv_select_cpu(group: int, n_sinks: int, window: int, rule: str) -> Any:
    """Threads share (row, kv head).

    Args: pools, positions, n_rows*, weights, weights_stride, run_stats, n_runs, stats, ids,
    ids_stride, counts, ratio, at_least, min_len, scratch, scratch_stride.
    Shapes: ids int32 [B, Hk, ids_stride / 4], counts int64 [B, Hk]; others as in yakv_score_cpu. A count
    takes the place of NOT_YET when its ids are there: attention to them need not wait for other heads.
    """
    from ..cpu import vector_ops as v
    from .merge_partials import MAX_PARTIALS
    from .select_topk import make_select_largest
    from .yakv_tail import make_run_weights

    n_weights = weight_rows(group, rule)  # rows
    run_weights, rank, select_largest = make_run_weights(group), make_rank(group, rule), make_select_largest()
    lengths, bytes_of = make_lengths(n_sinks, window), v.inline(keys_bytes)
    heads_at, read_at, steps_at = pool_word("n_kv_heads"), pool_word("rows_read"), pool_word("steps")

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        pools, positions, n_rows = v.get_i64(args), v.get_i64(args + 8), v.get_i64(v.get_i64(args + 16))
        weights, weights_stride = v.get_i64(args + 24), v.get_i64(args + 32)
        run_stats, max_runs, stats = v.get_i64(args + 40), v.get_i64(args + 48), v.get_i64(args + 56)
        ids, ids_stride, counts = v.get_i64(args + 64), v.get_i64(args + 72), v.get_i64(args + 80)
        ratio, at_least, min_len = v.get_i64(args + 88), v.get_i64(args + 96), v.get_i64(args + 104)
        runs = v.get_i64(args + 112) + thread * v.get_i64(args + 120)
        n_heads = v.get_i64(pools + heads_at)
        first, last = v.share(n_rows * n_heads, thread, n_threads, 0)
        for unit in range(first, last):
            n, k = lengths(v.get_i64(positions + unit // n_heads * 8), ratio, at_least, min_len)
            n_runs = (n // 64 + BLOCKS_PER_RUN - 1) // BLOCKS_PER_RUN
            own_stats = stats + unit * group * MAX_PARTIALS * 8
            stride = run_weights(runs, own_stats, run_stats + unit * max_runs * group * 8, n_runs)
            keys = runs + group * stride
            if k < n:
                rank(keys, weights + unit * n_weights * weights_stride, weights_stride, runs, stride, n)
            count = select_largest(keys, n, k, ids + unit * ids_stride, keys + bytes_of(n))
            v.atomic_publish(counts + unit * 8, count)
        if thread == 0:  # for all: two cores that add to one word wait for each other
            read = 0
            for row in range(n_rows):
                n, k = lengths(v.get_i64(positions + row * 8), ratio, at_least, min_len)
                read += n_heads * k
            v.atomic_add(pools + read_at, read)
            v.atomic_add(pools + steps_at, n_rows)

    return kernel

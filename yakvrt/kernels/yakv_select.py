"""Second pass of a YAKV decode step: the rows with the largest estimated probability, and the tail: the
estimated mass of all others times the mean value of their block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .select_topk import keys_bytes, select_scratch_bytes
from .yakv_layout import MAX_PARTIALS, YakvShape, indexed_end, make_pool_addresses, pool_word
from .yakv_score import BLOCKS_PER_RUN

RATIO_BITS = 20  # a budget ratio is a whole number of 2^-20


def budget_of(n: int, n_indexed: int, ratio: int, at_least: int, min_len: int) -> int:
    """Rows selected per head in a slot of n tokens: ratio / 2^20 of them and at least `at_least`; all up
    to min_len tokens.
    """
    if n <= min_len:
        return n_indexed
    return min(n_indexed, max(at_least, n * ratio >> 20))


def select_rows_scratch_bytes(group: int, head_dim: int, n_tokens: int) -> int:
    """Scratch of a thread: normalisers, keys, their selection, the mass of every block, a softmax state."""
    n_blocks = -(-n_tokens // 64)
    mass = group * -(-n_blocks // 16) * 64
    state = -(-group * (head_dim + 2) * 4 // 64) * 64
    return (
        64 + group * 64 + keys_bytes(n_tokens) + -(-select_scratch_bytes(n_tokens) // 64) * 64 + mass + state
    )


def yakv_select_cpu(*parameters: Any) -> Any:
    """Threads share (row, kv head).

    Args: pools, slots, positions, n_rows*, logits, logits_stride, run_stats, n_runs, sums, stats, ids,
    ids_stride, counts, ratio, at_least, min_len, scratch, scratch_stride.
    Shapes: ids int32 [B, Hk, ids_stride / 4], counts int64 [B, Hk]; the tail is partial 1 of sums and
    stats.
    """
    from ..cpu import vector_ops as v
    from ..cpu.attention_tiles import make_weighted_sum
    from .attend import make_accumulate
    from .select_topk import make_select_largest, make_weights
    from .yakv_score import make_put_partial

    shape = YakvShape(*parameters)
    group, head_dim, n_sinks, window, tail = (
        shape.group,
        shape.head_dim,
        shape.n_sinks,
        shape.window,
        shape.tail,
    )
    weights, select_largest = make_weights(shape.rule, group), make_select_largest()
    add_values = make_weighted_sum(group, head_dim, "f16")
    reset, _ = make_accumulate(group, head_dim)
    put_partial = make_put_partial(group, head_dim)
    _, _, _, _, _, values_of, _ = make_pool_addresses(shape)
    end_of, budget_in = v.inline(indexed_end), v.inline(budget_of)
    heads_at, read_at, steps_at = pool_word("n_kv_heads"), pool_word("rows_read"), pool_word("steps")

    @v.inline
    def normalisers(lse: int, stats: int, run_stats: int, n_runs: int) -> None:
        """log of the sum of exponentials over ring and indexed keys, per query of the group."""
        for g in range(group):
            cells = stats + g * MAX_PARTIALS * 8
            largest = v.get_f32(cells)
            total = v.get_f32(cells + MAX_PARTIALS * 4)
            for run in range(n_runs):
                run_max = v.get_f32(run_stats + (run * group + g) * 8)
                run_sum = v.get_f32(run_stats + (run * group + g) * 8 + 4)
                if run_max > largest:
                    total = total * v.scalar_exp(largest - run_max) + run_sum
                    largest = run_max
                else:
                    total += run_sum * v.scalar_exp(run_max - largest)
            v.put_f32(lse + g * 4, largest + v.scalar_log(total))

    @v.inline
    def add_tail(
        logits: int, logits_stride: int, lse: int, n_blocks: int, ids: int, count: int, mass: int, state: int
    ) -> None:
        """mass[g][block] of the rows that were not selected; the state's maxima and weights."""
        mass_bytes = (n_blocks + 15) // 16 * 64
        for g in range(group):
            row, normaliser = logits + g * logits_stride, v.get_f32(lse + g * 4)
            negative, cells = v.splat(-normaliser), mass + g * mass_bytes
            for block in range(n_blocks):
                total = v.zero()
                for j in range(block * 256, block * 256 + 256, 64):
                    total = v.add(total, v.vexp(v.add(v.load_f32(row + j), negative)))
                v.put_f32(cells + block * 4, v.hsum(total))
            for i in range(count):
                token = v.get_i32(ids + i * 4)
                cell = cells + token // 64 * 4
                p = v.scalar_exp(v.get_f32(row + token * 4) - normaliser)
                v.put_f32(cell, max(np.float32(0), v.get_f32(cell) - p))
            weight = np.float32(0)
            for block in range(n_blocks):
                weight += v.get_f32(cells + block * 4)
            running = state + group * head_dim * 4 + g * 8
            v.put_f32(running, normaliser)
            v.put_f32(running + 4, weight)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        pools, slots, positions = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        n_rows = v.get_i64(v.get_i64(args + 24))
        logits, logits_stride = v.get_i64(args + 32), v.get_i64(args + 40)
        run_stats, max_runs = v.get_i64(args + 48), v.get_i64(args + 56)
        sums, stats = v.get_i64(args + 64), v.get_i64(args + 72)
        ids, ids_stride, counts = v.get_i64(args + 80), v.get_i64(args + 88), v.get_i64(args + 96)
        ratio, at_least, min_len = v.get_i64(args + 104), v.get_i64(args + 112), v.get_i64(args + 120)
        lse = v.get_i64(args + 128) + thread * v.get_i64(args + 136)
        n_heads = v.get_i64(pools + heads_at)
        first, last = v.share(n_rows * n_heads, thread, n_threads, 0)
        read = 0
        for unit in range(first, last):
            row, head = unit // n_heads, unit % n_heads
            position, slot = v.get_i64(positions + row * 8), v.get_i64(slots + row * 8)
            n = end_of(position, n_sinks, window) - n_sinks
            n_blocks = n // 64
            n_runs = (n_blocks + BLOCKS_PER_RUN - 1) // BLOCKS_PER_RUN
            keys = lse + (group * 4 + 63) // 64 * 64
            selection = keys + n * 4
            mass = selection + 3 * (n * 4 + 64)
            state = mass + group * ((n_blocks + 15) // 16 * 64)
            own = logits + unit * group * logits_stride
            own_ids = ids + unit * ids_stride
            reset(state)
            count = 0
            if n > 0:
                own_stats = stats + unit * group * MAX_PARTIALS * 8
                normalisers(lse, own_stats, run_stats + unit * max_runs * group * 8, n_runs)
                weights(keys, own, logits_stride, lse, n)
                k = budget_in(position + 1, n, ratio, at_least, min_len)
                count = select_largest(keys, n, k, own_ids, selection)
                if tail and count < n:
                    add_tail(own, logits_stride, lse, n_blocks, own_ids, count, mass, state)
                    means = values_of(pools, slot, head)
                    add_values(means, n_blocks, mass, (n_blocks + 15) // 16 * 64, state)
            put_partial(sums, stats, row, head, n_heads, 1, state)
            v.put_i64(counts + unit * 8, count)
            read += count
        v.atomic_add(pools + read_at, read)
        if thread == 0:
            v.atomic_add(pools + steps_at, n_rows)

    return kernel

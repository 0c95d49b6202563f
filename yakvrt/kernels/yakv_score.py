"""First pass of a YAKV decode step: the new row goes into the ring, the ring is attended to, and every
indexed key is scored from its selector code. Scores become weights (yakv_weigh.py).
"""

from __future__ import annotations

from typing import Any

from .attend import CHUNK
from .merge_partials import make_put_partial
from .yakv_layout import (
    BLOCKS_PER_RUN,
    YakvShape,
    indexed_end,
    make_pool_addresses,
    pool_word,
    ring_place,
)
from .yakv_store import store_scratch_bytes
from .yakv_weigh import weigh_scratch_bytes

RING_UNITS = 4  # attention to the ring takes about as long as so many runs of blocks


def score_scratch_bytes(group: int, head_dim: int, record_bytes: int) -> int:
    """Scratch of a thread: quantised queries, one row; queries, sums and scores of attention; a block to
    encode; a run.
    """
    queries = -(-group * record_bytes // 64) * 64 + 8 * head_dim
    attention = group * (2 * head_dim + CHUNK + 16) * 4
    fixed = -(-queries // 64) * 64 + -(-attention // 64) * 64 + store_scratch_bytes(head_dim)
    return -(-fixed // 64) * 64 + weigh_scratch_bytes(group)


def yakv_score_cpu(*parameters: Any) -> Any:
    """Threads share (kv head, the ring or a run of blocks).

    Args: pools, q, k, v, q_stride, kv_stride, slots, positions, n_rows*, scale*, weights, weights_stride,
    run_stats, n_runs, block_sums, sums, stats, scratch, scratch_stride, q_copy, k_copy (see rms_norm_cpu),
    counts, which become NOT_YET for yakv_select_cpu.
    Shapes: weights bfloat16 [B, Hk, G, weights_stride / 2], of rule "mean" with a row of mean logits,
    float32, behind those of a head's queries; run_stats float32 [B, Hk, n_runs, G, 2]: the logit that the
    weights of a run of blocks are relative to, and their sum; block_sums float32 [B, Hk, G, n_runs,
    BLOCKS_PER_RUN] of weights; sums and stats as in merge_partials_cpu, of which the ring is partial 0.
    """
    from ..cpu import vector_ops as v
    from ..cpu.attention_tiles import PREFETCH_AHEAD, make_scores, make_weighted_sum
    from ..cpu.simd import ELEMENT_BYTES
    from .attend import make_accumulate
    from .higgs_score import make_quantise_query, query_bytes
    from .kv_append import make_append
    from .yakv_fetch import make_forget
    from .yakv_select import NOT_YET
    from .yakv_store import make_encode_block, make_mean_key
    from .yakv_weigh import make_ask_for_blocks, make_weigh_run

    shape = YakvShape(*parameters)
    group, head_dim, kind = shape.group, shape.head_dim, shape.kind
    n_sinks, window, sink_places, ring_len = shape.n_sinks, shape.window, shape.sink_places, shape.window + 64
    centred, weight_rows = shape.centred, shape.weight_rows
    scores_of = make_scores(group, head_dim, kind, prefetch=True)
    add_values = make_weighted_sum(group, head_dim, kind, prefetch=True)
    reset, fold = make_accumulate(group, head_dim)
    append, put_partial = make_append(head_dim, kind), make_put_partial(group, head_dim)
    encode_block, mean_key = make_encode_block(shape), make_mean_key(shape)
    forget = make_forget()
    quantise_query = make_quantise_query(shape.selector, head_dim)
    weigh_run, ask_for_blocks = make_weigh_run(shape), make_ask_for_blocks(shape)
    ring_k, ring_v, selector_of, _, _, _, mean_of = make_pool_addresses(shape)
    end_of, place_of = v.inline(indexed_end), v.inline(ring_place)
    heads_at, tables_at, mean_tables_at = (
        pool_word("n_kv_heads"),
        pool_word("selector_tables"),
        pool_word("mean_tables"),
    )
    record_bytes = query_bytes(shape.selector, head_dim)
    at_row = -(-group * record_bytes // 64) * 64
    at_attention = -(-(at_row + 8 * head_dim) // 64) * 64
    at_encode = at_attention + -(-group * (2 * head_dim + CHUNK + 16) * 4 // 64) * 64
    at_run = score_scratch_bytes(group, head_dim, record_bytes) - weigh_scratch_bytes(group)
    head_bytes, place_bytes = head_dim * 4, head_dim * ELEMENT_BYTES[kind]
    not_yet = NOT_YET
    ring_units, ring_unit = RING_UNITS, -(RING_UNITS // 2)  # whose thread does it: the middle one's

    @v.inline
    def attend(k_cache: int, v_cache: int, place: int, n: int, queries: int, state: int, scores: int) -> None:
        """Folds n rows from `place`, a multiple of 16, on into the state."""
        for chunk in range(0, n, CHUNK):
            n_positions = min(CHUNK, n - chunk)
            n_lanes = (n_positions + 15) // 16 * 16
            start = (place + chunk) * place_bytes
            scores_of(k_cache + start, n_lanes // 16, queries, scores, CHUNK * 4)
            for g in range(group):
                fold(scores + g * CHUNK * 4, n_positions, n_lanes, state, g)
            add_values(v_cache + start, n_positions, scores, CHUNK * 4, state)

    @v.inline
    def ask_for(k_cache: int, v_cache: int, place: int, n: int) -> None:
        """Prefetches the first of n rows from `place` on; attention to them asks for the others."""
        start = place * place_bytes
        for line in range(start, start + min(n * place_bytes, PREFETCH_AHEAD), 64):
            v.prefetch(k_cache + line)
            v.prefetch(v_cache + line)

    @v.inline
    def attend_ring(
        pools: int,
        slot: int,
        head: int,
        position: int,
        q: int,
        k: int,
        values: int,
        scale: float,
        scratch: int,
    ) -> None:
        """Appends the row; leaves the ring's softmax state in the scratch; then encodes what left the
        window.
        """
        k_cache, v_cache = ring_k(pools, slot, head), ring_v(pools, slot, head)
        begin = end_of(position, n_sinks, window)
        n_recent = max(0, position + 1 - begin)
        first = (begin - n_sinks) % ring_len
        before_wrap = min(n_recent, ring_len - first)
        ask_for(k_cache, v_cache, 0, min(position + 1, n_sinks))
        ask_for(k_cache, v_cache, sink_places + first, before_wrap)
        ask_for(k_cache, v_cache, sink_places, n_recent - before_wrap)
        append(k_cache, v_cache, k, values, place_of(position, n_sinks, sink_places, ring_len))
        queries = scratch + at_attention
        state = queries + group * head_bytes
        scores = state + group * (head_bytes + 16)
        factor = v.splat(scale)
        for j in range(0, group * head_bytes, 64):
            v.store_f32(queries + j, v.mul(v.load_f32(q + j), factor))
        reset(state)
        attend(k_cache, v_cache, 0, min(position + 1, n_sinks), queries, state, scores)
        attend(k_cache, v_cache, sink_places + first, before_wrap, queries, state, scores)
        attend(k_cache, v_cache, sink_places, n_recent - before_wrap, queries, state, scores)
        if end_of(position + 1, n_sinks, window) > begin:
            if centred and begin == n_sinks:
                mean_key(mean_of(pools, slot, head), k_cache, sink_places, n_recent)
            block = (begin - n_sinks) // 64
            forget(pools, slot, head, block * 64, block * 64 + 64)
            encode_block(pools, slot, head, block, k_cache, v_cache, sink_places + first, scratch + at_encode)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        pools = v.get_i64(args)
        q = v.get_i64(args + 8) + thread * v.get_i64(args + 152)
        k, values = v.get_i64(args + 16) + thread * v.get_i64(args + 160), v.get_i64(args + 24)
        q_stride, kv_stride = v.get_i64(args + 32), v.get_i64(args + 40)
        slots, positions, n_rows = (
            v.get_i64(args + 48),
            v.get_i64(args + 56),
            v.get_i64(v.get_i64(args + 64)),
        )
        scale = v.get_f32(v.get_i64(args + 72))
        weights, weights_stride = v.get_i64(args + 80), v.get_i64(args + 88)
        run_stats, max_runs, block_sums = v.get_i64(args + 96), v.get_i64(args + 104), v.get_i64(args + 112)
        sums, stats = v.get_i64(args + 120), v.get_i64(args + 128)
        scratch = v.get_i64(args + 136) + thread * v.get_i64(args + 144)
        n_heads, counts = v.get_i64(pools + heads_at), v.get_i64(args + 168)
        if thread == 0:
            for unit in range(n_rows * n_heads):
                v.put_i64(counts + unit * 8, not_yet)
        tables, mean_tables = v.get_i64(pools + tables_at), v.get_i64(pools + mean_tables_at)
        for row in range(n_rows):
            position, slot = v.get_i64(positions + row * 8), v.get_i64(slots + row * 8)
            n_indexed = end_of(position, n_sinks, window) - n_sinks
            n_blocks = n_indexed // 64
            per_head = ring_units + (n_blocks + BLOCKS_PER_RUN - 1) // BLOCKS_PER_RUN
            first, last = v.share(n_heads * per_head, thread, n_threads, 0)
            quantised = -1
            for unit in range(first, last):
                head, run = unit // per_head, unit % per_head - ring_units
                queries = q + row * q_stride + head * group * head_bytes
                if run == ring_unit:
                    new = row * kv_stride + head * head_bytes
                    attend_ring(pools, slot, head, position, queries, k + new, values + new, scale, scratch)
                    state = scratch + at_attention + group * head_bytes
                    put_partial(sums, stats, row, head, n_heads, 0, state)
                elif run >= 0:
                    begin, end = run * BLOCKS_PER_RUN, min((run + 1) * BLOCKS_PER_RUN, n_blocks)
                    blocks = selector_of(pools, slot, head)
                    if quantised != head:
                        ask_for_blocks(blocks, begin, end)  # they come while queries are quantised
                        mean = mean_of(pools, slot, head) if centred else 0
                        for g in range(group):
                            record = scratch + g * record_bytes
                            source = queries + g * head_bytes
                            quantise_query(record, source, mean, scale, tables, scratch + at_row)
                        quantised = head
                    out = weights + (row * n_heads + head) * weight_rows * weights_stride
                    cell = run_stats + ((row * n_heads + head) * max_runs + run) * group * 8
                    own_sums = block_sums + ((row * n_heads + head) * group * max_runs + run) * 64
                    weigh_run(
                        scratch,
                        blocks,
                        begin,
                        end,
                        out,
                        weights_stride,
                        cell,
                        own_sums,
                        max_runs * 64,
                        tables,
                        mean_tables,
                        scratch + at_run,
                    )

    return kernel

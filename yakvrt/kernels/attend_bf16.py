"""Causal grouped-query attention of prompts on matrix registers: queries, keys, weights and values as
bfloat16; logits, exponentials and sums in float32.

Source: online softmax, Milakov & Gimelshein, arXiv 1805.02867; its truth is attend_ref.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .attend import CHUNK, make_accumulate

ROWS = 128  # query rows that share the keys and values a thread widens
PAIR_ROWS = 32  # two matrix registers
SCORE_BYTES = CHUNK * 4 + 64  # of a row; an odd number of cache lines


def can_attend_bf16(group: int, head_dim: int, kind: str) -> bool:
    """float32 rows stay exact."""
    return kind != "f32" and head_dim % 32 == 0 and group <= ROWS


def scratch_bytes(head_dim: int) -> int:
    """Of a thread: queries, sums with maxima and weights, scores, weights, keys, values, zeros."""
    rows = ROWS * (6 * head_dim + 8) + PAIR_ROWS * (SCORE_BYTES + 2 * CHUNK)
    return rows + 4 * CHUNK * head_dim + 64


def attend_prefill_bf16_cpu(group: int, head_dim: int, kind: str) -> Any:
    """Attention of consecutive tokens of one slot. Threads draw (token tile, kv head) items, longest first.

    Args: as attend_prefill_cpu, with scratch_bytes of scratch.
    """
    from ..cpu import vector_ops as v
    from ..cpu.amx_matmul import configure_tiles, make_multiply_tiles, release_tiles
    from ..cpu.rough_exponential import rough_exp2, scalar_exp2
    from ..cpu.rough_exponential import store_bf16_pair as store_pair
    from ..cpu.simd import ELEMENT_BYTES
    from ..cpu.tile_widen import make_pair_rows, make_widen_tile

    multiply = make_multiply_tiles(2, 2)
    widen_keys, pair_rows = make_widen_tile(kind.upper()), make_pair_rows(kind)
    reset, _ = make_accumulate(ROWS, head_dim)
    tokens = ROWS // group
    head_bytes, value_bytes = head_dim * 4, head_dim * ELEMENT_BYTES[kind]
    n_blocks, n_vectors, vector_bytes = head_dim // 32, head_dim // 16, 16 * ELEMENT_BYTES[kind]
    query_pack, key_tile = n_blocks * 1024, n_blocks * 1024
    chunk_len, score_bytes, all_rows, pair = CHUNK, SCORE_BYTES, ROWS, PAIR_ROWS
    log2_e = np.float32(np.log2(np.e))

    @v.inline
    def prepare(q: int, row_bytes: int, n_tokens: int, scale: float, queries: int) -> None:
        """Scaled queries of up to `tokens` tokens, in packs of 16 rows; rows without a token are zero."""
        factor = v.splat(scale)
        for row in range(all_rows):
            token, g = row // group, row % group
            target = queries + row // 16 * query_pack + row % 16 * 64
            for j in range(n_vectors):
                piece = v.zero()
                if token < min(tokens, n_tokens):
                    piece = v.mul(v.load_f32(q + token * row_bytes + g * head_bytes + j * 64), factor)
                v.store_bf16(target + j // 2 * 1024 + j % 2 * 32, piece)

    @v.inline
    def widen_values(source: int, n_positions: int, n_pairs: int, zeros: int, values: int) -> None:
        """Positions behind the last are zeros: what the cache holds there may be anything."""
        block = n_pairs * 64
        for i in range(n_positions // 2):
            for j in range(n_vectors):
                low = source + 2 * i * value_bytes + j * vector_bytes
                pair_rows(low, low + value_bytes, values + j * block + i * 64)
        for j in range(n_vectors):
            if n_positions % 2:
                last = source + (n_positions - 1) * value_bytes + j * vector_bytes
                pair_rows(last, zeros, values + j * block + n_positions // 2 * 64)
            for i in range((n_positions + 1) // 2, n_pairs):
                v.store_f32(values + j * block + i * 64, v.zero())

    @v.inline
    def weigh(scores: int, n_valid: int, n_lanes: int, state: int, row: int, weights: int) -> None:
        """Scores of a row, base 2 -> weights relative to its new maximum, in its pack; rescales earlier sums.
        A row that attends to nothing here weighs nothing.
        """
        if n_valid <= 0:
            for j in range(n_lanes // 32):
                store_pair(weights + j * 1024, v.zero(), v.zero())
            return
        for i in range(n_valid, n_lanes):
            v.put_f32(scores + i * 4, np.float32(-1e30))
        largest = v.load_f32(scores)
        for i in range(64, n_lanes * 4, 64):
            largest = v.vmax(v.load_f32(scores + i), largest)
        running = state + all_rows * head_bytes + row * 8
        old, total = v.get_f32(running), v.get_f32(running + 4)
        new = max(old, v.hmax(largest))
        if new > old:
            shrink = scalar_exp2(old - new)
            total *= shrink
            factor, sums = v.splat(shrink), state + row * head_bytes
            for i in range(0, head_bytes, 64):
                v.store_f32(sums + i, v.mul(v.load_f32(sums + i), factor))
        negative, gained = v.splat(-new), v.zero()
        for j in range(n_lanes // 32):
            first = rough_exp2(v.add(v.load_f32(scores + j * 128), negative))
            second = rough_exp2(v.add(v.load_f32(scores + j * 128 + 64), negative))
            gained = v.add(gained, v.add(first, second))
            store_pair(weights + j * 1024, first, second)
        v.put_f32(running, new)
        v.put_f32(running + 4, total + v.hsum(gained))

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, q, row_bytes = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        k_cache, v_cache = v.get_i64(args + 24), v.get_i64(args + 32)
        slot_stride, head_stride = v.get_i64(args + 40), v.get_i64(args + 48)
        slot, start = v.get_i64(v.get_i64(args + 56)), v.get_i64(v.get_i64(args + 64))
        n_tokens, n_kv_heads = v.get_i64(v.get_i64(args + 72)), v.get_i64(args + 80)
        scale = v.get_f32(v.get_i64(args + 88)) * log2_e
        queries = v.get_i64(args + 96) + thread * v.get_i64(args + 104)
        state = queries + all_rows * head_dim * 2
        scores = state + all_rows * (head_bytes + 8)
        weights = scores + pair * score_bytes
        keys = weights + pair * chunk_len * 2
        values = keys + chunk_len * head_dim * 2
        zeros = values + chunk_len * head_dim * 2
        v.store_f32(zeros, v.zero())
        n_items = (n_tokens + tokens - 1) // tokens * n_kv_heads
        configure_tiles()
        item = v.atomic_add(counter, 1)
        while item < n_items:
            head = item % n_kv_heads
            first = ((n_items - 1 - item) // n_kv_heads) * tokens
            base = slot * slot_stride + head * head_stride
            heads = head * group * head_bytes
            prepare(q + first * row_bytes + heads, row_bytes, n_tokens - first, scale, queries)
            reset(state)
            end = start + min(first + tokens, n_tokens)
            for chunk in range(0, end, chunk_len):
                n_positions = min(chunk_len, end - chunk)
                n_wide = (n_positions + 31) // 32
                own_keys = k_cache + base + chunk * value_bytes
                for t in range((n_positions + 15) // 16):
                    widen_keys(own_keys + t * 16 * value_bytes, head_dim, keys + t * key_tile)
                widen_values(v_cache + base + chunk * value_bytes, n_positions, 16 * n_wide, zeros, values)
                for half in range(0, all_rows, pair):
                    packs = queries + half // 16 * query_pack
                    for i in range(n_wide):
                        tile = keys + 2 * i * key_tile
                        multiply(tile, packs, query_pack, n_blocks, scores + i * 128, score_bytes, 0, 0)
                    for r in range(pair):
                        row = half + r
                        token = first + row // group
                        n_valid = min(n_positions, start + token + 1 - chunk)
                        if row >= tokens * group or token >= n_tokens:
                            n_valid = 0
                        target = weights + r // 16 * (n_wide * 1024) + r % 16 * 64
                        weigh(scores + r * score_bytes, n_valid, 32 * n_wide, state, row, target)
                    for i in range(n_blocks):
                        own_values = values + 2 * i * (n_wide * 1024)
                        sums = state + half * head_bytes + i * 128
                        multiply(own_values, weights, n_wide * 1024, n_wide, sums, head_bytes, 0, 1)
            for row in range(min(tokens, n_tokens - first) * group):
                total = v.get_f32(state + all_rows * head_bytes + row * 8 + 4)
                factor = v.splat(np.float32(1) / total)
                target = out + (first + row // group) * row_bytes + heads + row % group * head_bytes
                for j in range(0, head_bytes, 64):
                    v.store_f32(target + j, v.mul(v.load_f32(state + row * head_bytes + j), factor))
            item = v.atomic_add(counter, 1)
        release_tiles()

    return kernel

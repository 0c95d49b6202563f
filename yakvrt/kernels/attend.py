"""Causal grouped-query attention over a KV cache.

Source: online softmax, Milakov & Gimelshein, arXiv 1805.02867.
"""

from __future__ import annotations

from typing import Any

import numpy as np

CHUNK = 256  # positions whose scores are held at once


def attend_ref(q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Every row attends to the positions up to its own, in float64.

    Shapes: q [B, Hq, D], k and v [S, Hk, D] of one slot, positions [B] -> [B, Hq, D].
    """
    group = q.shape[1] // k.shape[1]
    out = np.empty(q.shape)
    for row, position in enumerate(positions):
        for head in range(q.shape[1]):
            keys = k[: position + 1, head // group].astype(np.float64)
            scores = keys @ q[row, head].astype(np.float64) / np.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ v[: position + 1, head // group].astype(np.float64) / weights.sum()
    return out


def make_accumulate(n_rows: int, head_dim: int) -> tuple[Any, Any]:
    """(reset, fold) over the running state [n_rows][D] sums, [n_rows] maxima, [n_rows] weights."""
    from ..cpu import vector_ops as v

    @v.inline
    def reset(state: int) -> None:
        for i in range(0, n_rows * head_dim * 4, 64):
            v.store_f32(state + i, v.zero())
        maxima = state + n_rows * head_dim * 4
        for row in range(n_rows):
            v.put_f32(maxima + row * 8, np.float32(-1e30))
            v.put_f32(maxima + row * 8 + 4, np.float32(0))

    @v.inline
    def fold(scores: int, n_valid: int, n_lanes: int, state: int, row: int) -> None:
        """Scores of one row -> weights relative to its new maximum; rescales what was summed before."""
        for i in range(n_valid, n_lanes):
            v.put_f32(scores + i * 4, np.float32(-1e30))
        sums = state + row * head_dim * 4
        running = state + n_rows * head_dim * 4 + row * 8
        largest = v.load_f32(scores)
        for i in range(64, n_lanes * 4, 64):
            largest = v.vmax(v.load_f32(scores + i), largest)
        old = v.get_f32(running)
        new = max(old, v.hmax(largest))
        total = v.get_f32(running + 4)
        if new > old:
            shrink = v.scalar_exp(old - new)
            total *= shrink
            factor = v.splat(shrink)
            for i in range(0, head_dim * 4, 64):
                v.store_f32(sums + i, v.mul(v.load_f32(sums + i), factor))
        negative = v.splat(-new)
        weights = v.zero()
        for i in range(0, n_lanes * 4, 64):
            e = v.vexp(v.add(v.load_f32(scores + i), negative))
            v.store_f32(scores + i, e)
            weights = v.add(weights, e)
        v.put_f32(running, new)
        v.put_f32(running + 4, total + v.hsum(weights))

    return reset, fold


def prefill_tokens(group: int, wide: bool) -> int:
    """Query tokens that share one pass over the keys: as many rows as the registers hold."""
    return max(1, (12 if wide else 4) // group)


def scratch_floats(group: int, head_dim: int, wide: bool) -> int:
    """Float32 scratch per thread, of attend_decode_cpu too: queries, sums and maxima, scores."""
    return group * prefill_tokens(group, wide) * (2 * head_dim + CHUNK + 2)


def attend_prefill_cpu(group: int, head_dim: int, kind: str) -> Any:
    """Attention of consecutive tokens of one slot. Threads draw (token tile, kv head) items, longest first.

    Args: out, q, row_bytes (of both), k_cache, v_cache, slot_stride, head_stride, slots, positions, n_rows*,
    n_kv_heads, scale*, scratch, scratch_stride, q_copy (see rms_norm_cpu).
    """
    from ..cpu import vector_ops as v
    from ..cpu.attention_tiles import make_scores, make_weighted_sum
    from ..cpu.simd import ELEMENT_BYTES, FEATURES

    tokens = prefill_tokens(group, FEATURES.avx512)
    n_rows = tokens * group
    scores_of, add_values = make_scores(n_rows, head_dim, kind), make_weighted_sum(n_rows, head_dim, kind)
    reset, fold = make_accumulate(n_rows, head_dim)
    position_bytes = head_dim * ELEMENT_BYTES[kind]
    head_bytes = head_dim * 4

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, q, row_bytes = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        k_cache, v_cache = v.get_i64(args + 24), v.get_i64(args + 32)
        slot_stride, head_stride = v.get_i64(args + 40), v.get_i64(args + 48)
        slot, start = v.get_i64(v.get_i64(args + 56)), v.get_i64(v.get_i64(args + 64))
        n_tokens, n_kv_heads = v.get_i64(v.get_i64(args + 72)), v.get_i64(args + 80)
        scale = v.splat(v.get_f32(v.get_i64(args + 88)))
        queries = v.get_i64(args + 96) + thread * v.get_i64(args + 104)
        q += thread * v.get_i64(args + 112)
        state = queries + n_rows * head_bytes
        scores = state + n_rows * (head_bytes + 8)
        n_token_tiles = (n_tokens + tokens - 1) // tokens
        while True:
            item = v.atomic_add(counter, 1)
            if item >= n_token_tiles * n_kv_heads:
                break
            head = item % n_kv_heads
            first = (n_token_tiles - 1 - item // n_kv_heads) * tokens
            for i in range(tokens):
                token = min(first + i, n_tokens - 1)
                source = q + token * row_bytes + head * group * head_bytes
                for j in range(0, group * head_bytes, 64):
                    v.store_f32(queries + i * group * head_bytes + j, v.mul(v.load_f32(source + j), scale))
            reset(state)
            base = slot * slot_stride + head * head_stride
            end = start + min(first + tokens, n_tokens)
            for chunk in range(0, end, CHUNK):
                n_positions = min(CHUNK, end - chunk)
                n_lanes = (n_positions + 15) // 16 * 16
                scores_of(k_cache + base + chunk * position_bytes, n_lanes // 16, queries, scores, CHUNK * 4)
                for i in range(tokens):
                    n_valid = min(n_positions, start + first + i + 1 - chunk)
                    for g in range(group):
                        row = i * group + g
                        if n_valid > 0:
                            fold(scores + row * CHUNK * 4, n_valid, n_lanes, state, row)
                        else:
                            for j in range(0, n_lanes * 4, 64):
                                v.store_f32(scores + row * CHUNK * 4 + j, v.zero())
                add_values(v_cache + base + chunk * position_bytes, n_positions, scores, CHUNK * 4, state)
            for i in range(tokens):
                if first + i < n_tokens:
                    for g in range(group):
                        row = i * group + g
                        total = v.get_f32(state + n_rows * head_bytes + row * 8 + 4)
                        factor = v.splat(np.float32(1) / total)
                        target = out + (first + i) * row_bytes + (head * group + g) * head_bytes
                        for j in range(0, head_bytes, 64):
                            v.store_f32(target + j, v.mul(v.load_f32(state + row * head_bytes + j), factor))

    return kernel

"""A CUDA kernel over the keys that rest on the device, which a new query's proxy is fitted to (LRQK)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work
from .page_scores import check_rows

MAX_RANK = 256
TOKENS = 32  # whose proxies are in shared memory at once


def factor_resident_ref(
    q: np.ndarray, b_q: np.ndarray, keys: np.ndarray, proxies: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """q B_Q^T + (q K^T) A and B_Q B_Q^T + A^T A, of resident keys K and their proxies A: a query's proxy x
    solves x square = known but for what the newest key adds.

    Shapes: q float32 [..., 1, D], b_q [..., r, D], keys [..., m, D], proxies [..., m, r] -> known
    [..., 1, r], square [..., r, r].
    """
    back, turned = b_q.swapaxes(-1, -2), proxies.swapaxes(-1, -2)
    return q @ back + (q @ keys.swapaxes(-1, -2)) @ proxies, b_q @ back + turned @ proxies


def factor_resident_cuda(g: Any, head_dim: int, kind: str) -> CudaKernel:
    """factor_resident_ref for every query head of a batch, `sharing` of which share a KV head: the rows of
    the cache's filled places, and those of the ring but the newest.

    Grid: a block for each segment, a query head of a row.
    Shapes: known float32 [segments][rank], square [segments][rank][rank]; q float32 [B][q_stride]; factors
    float32 [slots][heads][2][rank][D], of which the first; keys of `kind` in pairs as page_gather.py has
    them, ring_k by position modulo ring_len, strides in numbers; recalled int32, n_places int64 [slots];
    proxies bfloat16 in pairs, rows of width numbers. rank up to 256.
    Raises: ValueError.
    """
    check_rows(head_dim, kind)
    threads, n_tokens, most = 256, TOKENS, MAX_RANK
    warps, n_tile = threads // 32, n_tokens * most
    low, high = (g.low_f16, g.high_f16) if kind == "f16" else (g.low_bf16, g.high_bf16)
    pairs, per_word = head_dim // 2, 1 if kind == "f32" else 2

    @g.inline
    def exact_pair(rows, i):  # type: ignore[no-untyped-def]
        return rows[2 * i], rows[2 * i + 1]

    @g.inline
    def half_pair(rows, i):  # type: ignore[no-untyped-def]
        word = rows[i]
        return low(word), high(word)

    pair_of = exact_pair if kind == "f32" else half_pair

    def kernel(  # type: ignore[no-untyped-def]
        known, square, q, q_stride, factors, recalled, most_places, n_places, cache_k, cache_head_stride,
        ring_k, ring_slot_stride, ring_head_stride, ring_len, proxies, proxy_head_stride, width, rank, slots,
        positions, n_rows, n_heads, sharing,
    ):  # fmt: skip
        segment, thread, lane, warp = g.block(), g.thread(), g.lane(), g.thread() // 32
        row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if row >= n_rows[0]:
            return
        head, slot = g.int32(segment - row * n_heads), slots[row]
        owner, position = slot * n_heads + head, g.int32(positions[row])
        held = g.shifted(recalled, owner * most_places)
        basis = g.shifted(factors, owner * 2 * rank * head_dim)
        own_cache = g.shifted(cache_k, owner * cache_head_stride // per_word)
        kv_head = g.int32(g.uint32(head) // g.uint32(sharing))
        own_ring = g.shifted(ring_k, (slot * ring_slot_stride + kv_head * ring_head_stride) // per_word)
        own_proxies = g.shifted(proxies, owner * proxy_head_stride // 2)
        own_known, own_square = g.shifted(known, segment * rank), g.shifted(square, segment * rank * rank)
        query, dots, tile = g.shared_f32(head_dim), g.shared_f32(n_tokens), g.shared_f32(n_tile)
        counts = g.shared_i32(1)
        for i in range(thread, head_dim, g.int32(threads)):
            query[i] = q[g.int64(row) * q_stride + head * head_dim + i]
        if thread == 0:
            counts[0] = 0
        g.sync_threads()
        for place in range(thread, g.int32(min(n_places[slot], most_places)), g.int32(threads)):
            if held[place] >= 0:
                g.atomic_add_i32(counts, 0, 1)
        for a in range(thread, rank, g.int32(threads)):
            total = g.float32(0)
            for i in range(head_dim):
                total = g.fma(query[i], basis[a * head_dim + i], total)
            own_known[a] = total
        for at in range(thread, rank * rank, g.int32(threads)):
            a, b, total = at // rank, at % rank, g.float32(0)
            for i in range(head_dim):
                total = g.fma(basis[a * head_dim + i], basis[b * head_dim + i], total)
            own_square[at] = total
        g.sync_threads()
        n_held = g.int32(counts[0])
        n_past = g.int32(min(position, ring_len - 1))
        for first in range(g.int32(0), g.int32(n_held + n_past), g.int32(n_tokens)):
            n = g.int32(min(g.int32(n_tokens), n_held + n_past - first))
            for token in range(warp, n, g.int32(warps)):
                i = g.int32(first + token)
                key, place = own_cache, i
                if i >= n_held:
                    key, place = own_ring, g.int32((position - n_past + i - n_held) % ring_len)
                row_of = g.shifted(key, g.int64(place) * (head_dim // per_word))
                total = g.float32(0)
                for j in range(lane, pairs, g.int32(32)):
                    even, odd = pair_of(row_of, j)
                    total = g.fma(odd, query[2 * j + 1], g.fma(even, query[2 * j], total))
                total = g.warp_sum(total)
                if lane == 0:
                    dots[token] = total
            for at in range(thread, n * rank, g.int32(threads)):
                token, a = at // rank, at % rank
                i = g.int32(first + token)
                number = g.int32(position - n_past + i - n_held)
                if i < n_held:
                    number = max(g.int32(held[i]), g.int32(0))  # a file may leave places out
                word = own_proxies[(g.int64(number) * width + a) // 2]
                tile[at] = g.high_bf16(word) if a % 2 else g.low_bf16(word)
            g.sync_threads()
            for a in range(thread, rank, g.int32(threads)):
                total = own_known[a]
                for token in range(n):
                    total = g.fma(dots[token], tile[token * rank + a], total)
                own_known[a] = total
            for at in range(thread, rank * rank, g.int32(threads)):
                a, b, total = at // rank, at % rank, own_square[at]
                for token in range(n):
                    total = g.fma(tile[token * rank + a], tile[token * rank + b], total)
                own_square[at] = total
            g.sync_threads()

    keys = "f32*" if kind == "f32" else "u32*"
    return CudaKernel(
        kernel,
        f"f32* f32* f32* i32 f32* i32* i64 i64* {keys} i64 {keys} i64 i64 i32 u32* i64 i32 i32 i64* i64* i64*"
        " i32 i32",
        threads,
        work=Work("resident key of a query head", head_dim * 4 // per_word, 2 * head_dim),
    )

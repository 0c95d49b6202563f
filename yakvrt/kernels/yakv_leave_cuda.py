"""CUDA kernels of a YAKV slot's window: what follows from the slot's length, and the block that leaves."""

from __future__ import annotations

from typing import Any

import numpy as np

from .attend_fragments import number_ops
from .cuda_kernel import CudaKernel, Work
from .head_pairs import check_pairs, make_sum_shares
from .higgs_layout import BLOCK_TOKENS
from .yakv_layout import Budget, indexed_end
from .yakv_select import RATIO_BITS, budget_of


def yakv_lengths_ref(
    positions: np.ndarray, n_sinks: int, window: int, budget: Budget
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For the tokens at these positions: how many rows are indexed, how many of them a head selects, and the
    indexed rows [first, last) that the step adds.

    Shapes: positions [B] -> int64 [B] each.
    """
    lengths, selected, lasts = (np.empty(len(positions), np.int64) for _ in range(3))
    for i, position in enumerate(positions.tolist()):
        lengths[i], lasts[i] = (indexed_end(position + k, n_sinks, window) - n_sinks for k in (0, 1))
        limits = budget.ratio, budget.at_least, budget.min_len
        selected[i] = budget_of(position + 1, int(lengths[i]), *limits)
    return lengths, selected, lengths.copy(), lasts


def yakv_lengths_cuda(g: Any) -> CudaKernel:
    """yakv_lengths_ref, so that a captured step needs nothing from the host but positions.

    Shapes: lengths and budgets int64 [B, Hk], 0 for rows that the batch lacks, firsts and lasts int64 [B],
    totals int64 [turns, 3]: of every `turn_rows` rows of the batch, how many there are, and how many KV heads
    and query heads they have.
    Grid: blocks of 128 rows, of all that a batch may have.
    """
    threads, end_of, ratio_bits = 128, g.inline(indexed_end), RATIO_BITS

    def kernel(  # type: ignore[no-untyped-def]
        lengths, budgets, firsts, lasts, totals, turn_rows, positions, n_rows, capacity, n_heads, group,
        n_sinks, window, ratio, at_least, min_len,
    ):  # fmt: skip
        row = g.block() * threads + g.thread()
        first = row * turn_rows
        if first < capacity:
            n = min(max(g.int64(0), n_rows[0] - first), g.int64(turn_rows))
            totals[3 * row], totals[3 * row + 1] = n, n * n_heads
            totals[3 * row + 2] = n * n_heads * group
        if n_rows[0] <= row and row < capacity:
            for head in range(n_heads):
                lengths[row * n_heads + head] = 0
                budgets[row * n_heads + head] = 0
        if row < n_rows[0]:
            n = g.int64(positions[row]) + 1
            before = g.int64(end_of(n - 1, n_sinks, window) - n_sinks)
            selected = before
            if n > min_len:
                selected = min(before, max(g.int64(at_least), n * ratio >> ratio_bits))
            for head in range(n_heads):
                lengths[row * n_heads + head] = before
                budgets[row * n_heads + head] = selected
            firsts[row] = before
            lasts[row] = g.int64(end_of(n, n_sinks, window) - n_sinks)

    return CudaKernel(
        kernel, "i64* i64* i64* i64* i64* i32 i64* i64* i32 i32 i32 i32 i32 i64 i64 i64", threads
    )


def yakv_leave_cuda(g: Any, head_dim: int, kind: str, centred: bool) -> CudaKernel:
    """The 64 exact rows of a block that leaves the window, as float32 for the encoders, and the block's mean
    value; when it is a slot's first block also, if `centred`, the mean key of all that the ring holds.

    Shapes: k_rows and v_rows float32 [slots, Hk, 64, D]; values uint32 (pairs of float16), strides in words;
    means float32 [slots][means_slot_stride] of [Hk, D]; k_ring, v_ring as in attend_decode_cuda, strides in
    numbers; firsts and lasts of yakv_lengths_cuda.
    Grid: x, KV heads; y, rows.
    Raises: ValueError.
    """
    check_pairs(head_dim)
    _, low, high, _ = number_ops(g, kind)
    threads, pairs, block_tokens = 256, head_dim // 2, BLOCK_TOKENS
    shares = threads // pairs
    n_held, sum_shares = shares * head_dim, make_sum_shares(g, head_dim, threads)

    def kernel(  # type: ignore[no-untyped-def]
        k_rows, v_rows, values, values_slot, values_head, means, means_slot_stride, k_ring, v_ring, ring_slot,
        ring_head, firsts, lasts, positions, slots, n_rows, n_heads, n_sinks, window,
    ):  # fmt: skip
        row, head = g.block_y(), g.block()
        if row >= n_rows[0]:
            return
        first = g.int32(firsts[row])
        if lasts[row] <= first:
            return
        thread, slot, held = g.thread(), slots[row], g.shared_f32(n_held)
        share, ring_len = g.int32(thread // pairs), g.int32(window + block_tokens)
        pair = g.int32(thread - share * pairs)
        ring_at = (slot * ring_slot + head * ring_head) // 2 + g.int64(n_sinks) * pairs + pair
        keys, own_values = g.shifted(k_ring, ring_at), g.shifted(v_ring, ring_at)
        staged = (slot * n_heads + head) * (block_tokens * head_dim) + 2 * pair
        k_rows, v_rows = g.shifted(k_rows, staged), g.shifted(v_rows, staged)
        a, b = g.float32(0), g.float32(0)
        if share < shares:
            for i in range(share, block_tokens, shares):
                place = g.int32((first + i) % ring_len) * pairs
                word = keys[place]
                k_rows[i * head_dim], k_rows[i * head_dim + 1] = low(word), high(word)
                word = own_values[place]
                v_rows[i * head_dim], v_rows[i * head_dim + 1] = low(word), high(word)
                a, b = a + low(word), b + high(word)
        a, b = sum_shares(held, pair, share, a, b)
        if share == 0:
            at = slot * values_slot + head * values_head + g.int64(first // block_tokens) * pairs + pair
            part = g.float32(1 / block_tokens)
            values[at] = g.pack_f16(a * part, b * part)
        if centred and first == 0:
            n_recent = g.int32(positions[row] + 1 - n_sinks)
            a, b = g.float32(0), g.float32(0)
            if share < shares:
                for i in range(share, n_recent, shares):
                    word = keys[i * pairs]
                    a, b = a + low(word), b + high(word)
            a, b = sum_shares(held, pair, share, a, b)
            if share == 0:
                at = slot * means_slot_stride + head * head_dim + 2 * pair
                means[at] = g.divide(a, g.float32(n_recent))
                means[at + 1] = g.divide(b, g.float32(n_recent))

    return CudaKernel(
        kernel,
        "f32* f32* u32* i64 i64 f32* i64 u32* u32* i64 i64 i64* i64* i64* i64* i64* i32 i32 i32",
        threads,
        work=Work("row of a block", 12 * head_dim, head_dim),
    )

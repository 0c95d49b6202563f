"""CUDA kernels that take a prompt's exact rows into a YAKV slot (see yakv_store.py): rows as the encoders
read them, mean values of blocks, the mean key.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .attend_fragments import number_ops
from .cuda_kernel import CudaKernel, Work
from .head_pairs import check_pairs, make_sum_shares
from .higgs_layout import BLOCK_TOKENS


def mean_values_ref(v: np.ndarray) -> np.ndarray:
    """Shapes: [..., 64 * n, D] -> [..., n, D]."""
    blocks = v.reshape(*v.shape[:-2], -1, BLOCK_TOKENS, v.shape[-1])
    return blocks.mean(axis=-2)


def yakv_widen_cuda(g: Any, head_dim: int, kind: str) -> CudaKernel:
    """Rows spans[1] .. spans[2] - 1 of the indexed ones, whole blocks of a prompt, as float32, and the mean
    values of their blocks.

    Shapes: k_rows and v_rows float32, the row spans[1] of every head first, heads rows_head apart; values
    uint32 (pairs of float16), strides in words; k_cache and v_cache pairs of 16-bit numbers, position after
    position, heads cache_head words apart. spans int64: the slot, first and last row.
    Grid: x, blocks of 64 rows, as many as there may be; y, KV heads.
    Raises: ValueError.
    """
    check_pairs(head_dim)
    _, low, high, _ = number_ops(g, kind)
    threads, pairs, block_tokens = 256, head_dim // 2, BLOCK_TOKENS
    shares = threads // pairs
    n_held, sum_shares = shares * head_dim, make_sum_shares(g, head_dim, threads)

    def kernel(  # type: ignore[no-untyped-def]
        k_rows, v_rows, rows_head, values, values_slot, values_head, k_cache, v_cache, cache_head, spans,
        n_sinks,
    ):  # fmt: skip
        first = g.int64(g.block()) * block_tokens
        row = spans[1] + first
        if row >= spans[2]:
            return
        head, thread, held = g.block_y(), g.thread(), g.shared_f32(n_held)
        share = g.int32(thread // pairs)
        pair = g.int32(thread - share * pairs)
        source = head * cache_head + (n_sinks + row) * pairs + pair
        keys, own_values = g.shifted(k_cache, source), g.shifted(v_cache, source)
        target = head * rows_head + first * head_dim + 2 * pair
        k_rows, v_rows = g.shifted(k_rows, target), g.shifted(v_rows, target)
        a, b = g.float32(0), g.float32(0)
        if share < shares:
            for i in range(share, block_tokens, shares):
                word = keys[i * pairs]
                k_rows[i * head_dim], k_rows[i * head_dim + 1] = low(word), high(word)
                word = own_values[i * pairs]
                v_rows[i * head_dim], v_rows[i * head_dim + 1] = low(word), high(word)
                a, b = a + low(word), b + high(word)
        a, b = sum_shares(held, pair, share, a, b)
        if share == 0:
            at = spans[0] * values_slot + head * values_head + row // block_tokens * pairs + pair
            part = g.float32(1 / block_tokens)
            values[at] = g.pack_f16(a * part, b * part)

    return CudaKernel(
        kernel,
        "f32* f32* i64 u32* i64 i64 u32* u32* i64 i64* i32",
        threads,
        work=Work("row", 12 * head_dim, head_dim),
    )


def yakv_mean_key_cuda(g: Any, head_dim: int, kind: str) -> CudaKernel:
    """The mean of the keys at positions n_sinks .. spans[3] - 1 of a prompt.

    Shapes: means float32 [slots][means_slot] of [Hk, D], others as in yakv_widen_cuda.
    Grid: x, KV heads.
    Raises: ValueError.
    """
    check_pairs(head_dim)
    _, low, high, _ = number_ops(g, kind)
    threads, pairs = 1024, head_dim // 2
    shares = threads // pairs
    n_held, sum_shares = shares * head_dim, make_sum_shares(g, head_dim, threads)

    def kernel(means, means_slot, k_cache, cache_head, spans, n_sinks):  # type: ignore[no-untyped-def]
        head, thread, held = g.block(), g.thread(), g.shared_f32(n_held)
        share = g.int32(thread // pairs)
        pair = g.int32(thread - share * pairs)
        keys = g.shifted(k_cache, head * cache_head + g.int64(n_sinks) * pairs + pair)
        n = g.int32(spans[3] - n_sinks)
        a, b = g.float32(0), g.float32(0)
        if share < shares:
            for i in range(share, n, shares):
                word = keys[g.int64(i) * pairs]
                a, b = a + low(word), b + high(word)
        a, b = sum_shares(held, pair, share, a, b)
        if share == 0:
            at = spans[0] * means_slot + head * head_dim + 2 * pair
            means[at] = g.divide(a, g.float32(n))
            means[at + 1] = g.divide(b, g.float32(n))

    return CudaKernel(
        kernel,
        "f32* i64 u32* i64 i64* i32",
        threads,
        work=Work("key", 2 * head_dim, head_dim),
    )

"""Writes rows into a KV cache whose keys rest in tiles of 16 positions and whose values rest in rows."""

from __future__ import annotations

from typing import Any

import numpy as np


def kv_append_ref(
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    slots: np.ndarray,
    positions: np.ndarray,
) -> None:
    """Shapes: k_cache [n_slots, Hk, S/16, D, 16], v_cache [n_slots, Hk, S, D], k and v [B, Hk, D]."""
    for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
        k_cache[slot, :, position // 16, :, position % 16] = k[row]
        v_cache[slot, :, position] = v[row]


def kv_append_cpu(head_dim: int, kind: str) -> Any:
    """Stores the k and v of every row at its slot and position.

    Args: k_cache, v_cache, slot_stride, head_stride, k, v, stride (of k and v), n_kv_heads, slots, positions,
    n_rows*, by_last, k_copy (see rms_norm_cpu).
    Threads share the heads of all rows. by_last: the last thread does all; it is the one that attends to the
    newest position in attend_decode_cpu, so that no other needs to wait.
    """
    from ..cpu import vector_ops as v_
    from ..cpu.simd import ELEMENT_BYTES

    element = ELEMENT_BYTES[kind]
    put, store = v_.PUT[kind], v_.STORE[kind]

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        k_cache, v_cache = v_.get_i64(args), v_.get_i64(args + 8)
        slot_stride, head_stride = v_.get_i64(args + 16), v_.get_i64(args + 24)
        k, v, stride, n_heads = (
            v_.get_i64(args + 32),
            v_.get_i64(args + 40),
            v_.get_i64(args + 48),
            v_.get_i64(args + 56),
        )
        slots, positions, n_rows = (
            v_.get_i64(args + 64),
            v_.get_i64(args + 72),
            v_.get_i64(v_.get_i64(args + 80)),
        )
        by_last = v_.get_i64(args + 88)
        k += thread * v_.get_i64(args + 96)
        if by_last and thread != n_threads - 1:
            return
        first, last = v_.share(n_rows * n_heads, thread, n_threads, by_last)  # the last thread takes all
        for unit in range(first, last):
            row, head = unit // n_heads, unit % n_heads
            position = v_.get_i64(positions + row * 8)
            base = v_.get_i64(slots + row * 8) * slot_stride + head * head_stride
            tile = k_cache + base + (position // 16 * head_dim * 16 + position % 16) * element
            source = row * stride + head * head_dim * 4
            for d in range(head_dim):
                put(tile + d * 16 * element, v_.get_f32(k + source + d * 4))
            target = v_cache + base + position * head_dim * element
            for d in range(0, head_dim, 16):
                store(target + d * element, v_.load_f32(v + source + d * 4))

    return kernel

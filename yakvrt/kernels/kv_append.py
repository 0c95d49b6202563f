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


def make_append(head_dim: int, kind: str) -> Any:
    """An inline append(k_cache, v_cache, k, v, position) of one head's row."""
    from ..cpu import vector_ops as v_
    from ..cpu.simd import ELEMENT_BYTES

    element = ELEMENT_BYTES[kind]
    put, store = v_.PUT[kind], v_.STORE[kind]

    @v_.inline
    def append(k_cache: int, v_cache: int, k: int, v: int, position: int) -> None:
        tile = k_cache + (position // 16 * head_dim * 16 + position % 16) * element
        for d in range(head_dim):
            put(tile + d * 16 * element, v_.get_f32(k + d * 4))
        target = v_cache + position * head_dim * element
        for d in range(0, head_dim, 16):
            store(target + d * element, v_.load_f32(v + d * 4))

    return append


def kv_append_cpu(head_dim: int, kind: str) -> Any:
    """Stores the k and v of every row at its slot and position. Threads share the heads of all rows.

    Args: k_cache, v_cache, slot_stride, head_stride, k, v, stride (of k and v), n_kv_heads, slots, positions,
    n_rows*, k_copy (see rms_norm_cpu). Strides in bytes.
    """
    from ..cpu import vector_ops as v_

    append = make_append(head_dim, kind)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        k_cache, v_cache = v_.get_i64(args), v_.get_i64(args + 8)
        slot_stride, head_stride = v_.get_i64(args + 16), v_.get_i64(args + 24)
        k, v = v_.get_i64(args + 32) + thread * v_.get_i64(args + 88), v_.get_i64(args + 40)
        stride, n_heads, slots = v_.get_i64(args + 48), v_.get_i64(args + 56), v_.get_i64(args + 64)
        positions, n_rows = v_.get_i64(args + 72), v_.get_i64(v_.get_i64(args + 80))
        first, last = v_.share(n_rows * n_heads, thread, n_threads, 0)
        for unit in range(first, last):
            row, head = unit // n_heads, unit % n_heads
            base = v_.get_i64(slots + row * 8) * slot_stride + head * head_stride
            source = row * stride + head * head_dim * 4
            append(k_cache + base, v_cache + base, k + source, v + source, v_.get_i64(positions + row * 8))

    return kernel

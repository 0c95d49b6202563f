"""Writes rows into a KV cache. Values rest in rows; keys in tiles of 16 positions, in rows too on a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work


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
    append_rows_ref(v_cache, v, slots, positions)


def append_rows_ref(cache: np.ndarray, rows: np.ndarray, slots: np.ndarray, positions: np.ndarray) -> None:
    """Shapes: cache [n_slots, Hk, S, D], rows [B, Hk, D]."""
    for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
        cache[slot, :, position] = rows[row]


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


def kv_append_cuda(g: Any, kind: str) -> CudaKernel:
    """Stores the k and v of every row at its slot and position, both in rows.

    Caches of f16 and bf16 hold pairs in uint32. slot_stride and head_stride count numbers of the cache,
    stride those of k and v; all are multiples of 8, as head_dim is. Positions from n_sinks on wrap around
    ring_len places (yakv_layout.py), or do not where that is 0.

    Grid: x, blocks of 128 threads with 8 numbers of a row each; y, rows.
    """
    threads = 128

    @g.inline
    def copy_f32(target, at, source, i):  # type: ignore[no-untyped-def]
        a, b, c, d = g.load_f32x4(source, i)
        g.store_f32x4(target, at, a, b, c, d)
        a, b, c, d = g.load_f32x4(source, i + 4)
        g.store_f32x4(target, at + 4, a, b, c, d)

    pack = g.pack_f16 if kind == "f16" else g.pack_bf16

    @g.inline
    def copy_halves(target, at, source, i):  # type: ignore[no-untyped-def]
        a, b, c, d = g.load_f32x4(source, i)
        e, f, h, j = g.load_f32x4(source, i + 4)
        g.store_u32x4(target, at // 2, pack(a, b), pack(c, d), pack(e, f), pack(h, j))

    copy = copy_f32 if kind == "f32" else copy_halves

    def kernel(  # type: ignore[no-untyped-def]
        k_cache, v_cache, slot_stride, head_stride, k, v, stride, n_heads, head_dim, slots, positions, n_rows,
        n_sinks, ring_len,
    ):  # fmt: skip
        row, column = g.block_y(), (g.block() * threads + g.thread()) * 8
        if row < n_rows[0] and column < n_heads * head_dim:
            head = g.int32(g.uint32(column) // g.uint32(head_dim))
            position = positions[row]
            if ring_len > 0 and position >= n_sinks:
                position = n_sinks + (position - n_sinks) % ring_len
            place = slots[row] * slot_stride + head * head_stride + position * head_dim
            at = place + column - head * head_dim
            source = g.int64(row) * stride + column
            copy(k_cache, at, k, source)
            copy(v_cache, at, v, source)

    cache = "f32*" if kind == "f32" else "u32*"
    return CudaKernel(
        kernel,
        f"{cache} {cache} i64 i64 f32* f32* i32 i32 i32 i64* i64* i64* i32 i32",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("number", 8 if kind == "f32" else 6),
    )

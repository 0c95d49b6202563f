"""Rotary position embedding, halves layout: dimension i pairs with i + D/2 (Su et al., arXiv 2104.09864).

Weights of GGUF files with interleaved pairs are reordered at load (weights.py), so there is one layout here.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def rope_table_ref(positions: np.ndarray, inv_freq: np.ndarray, scale: float) -> np.ndarray:
    """[cos | sin] of position * inv_freq, times `scale`; the angle is rounded to float32 as the models'
    training did.

    Shapes: positions [B], inv_freq [D/2] -> [B, D].
    """
    angle = positions.astype(np.float32)[:, None] * inv_freq.astype(np.float32)
    wide = angle.astype(np.float64)
    return np.concatenate([np.cos(wide), np.sin(wide)], axis=1) * scale


def rope_ref(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Shapes: x [B, H, D], table [B, D] -> [B, H, D]."""
    half = x.shape[-1] // 2
    cos, sin = table[:, None, :half], table[:, None, half:]
    a, b = x[..., :half].astype(np.float64), x[..., half:].astype(np.float64)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rope_table_cpu() -> Any:
    """Cosines and sines of the batch's positions.

    Args: table, positions (int64), inv_freq (float32), half, n_rows*, scale*.
    """
    import math

    from ..cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        table, positions, inv_freq = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        half, n_rows = v.get_i64(args + 24), v.get_i64(v.get_i64(args + 32))
        scale = v.get_f32(v.get_i64(args + 40))
        for unit in range(n_rows * half * thread // n_threads, n_rows * half * (thread + 1) // n_threads):
            row, i = unit // half, unit % half
            angle = np.float32(v.get_i64(positions + row * 8)) * v.get_f32(inv_freq + i * 4)
            wide = np.float64(angle)
            v.put_f32(table + (row * 2 * half + i) * 4, np.float32(math.cos(wide)) * scale)
            v.put_f32(table + (row * 2 * half + half + i) * 4, np.float32(math.sin(wide)) * scale)

    return kernel


def rope_cpu() -> Any:
    """Rotates every head of every row.

    Args: out, x, stride (of both), n_heads, half, table, n_rows*, out_copy, x_copy (see rms_norm_cpu).
    """
    from ..cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, x, stride, n_heads = (
            v.get_i64(args),
            v.get_i64(args + 8),
            v.get_i64(args + 16),
            v.get_i64(args + 24),
        )
        half, table, n_rows = v.get_i64(args + 32), v.get_i64(args + 40), v.get_i64(v.get_i64(args + 48))
        out_copy = v.get_i64(args + 56)
        out += thread * out_copy
        x += thread * v.get_i64(args + 64)
        first, last = v.share(n_rows * n_heads, thread, n_threads, out_copy)
        for unit in range(first, last):
            row, head = unit // n_heads, unit % n_heads
            offset = row * stride + head * half * 8
            low, high = x + offset, x + offset + half * 4
            out_low, out_high = out + offset, out + offset + half * 4
            cos = table + row * half * 8
            sin = cos + half * 4
            # half is a multiple of 8: the scalar loop vectorises
            for i in range(0, half * 4, 4):
                a, b = v.get_f32(low + i), v.get_f32(high + i)
                c, s = v.get_f32(cos + i), v.get_f32(sin + i)
                v.put_f32(out_low + i, a * c - b * s)
                v.put_f32(out_high + i, b * c + a * s)

    return kernel

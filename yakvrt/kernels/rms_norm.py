"""out = x / sqrt(mean(x^2) + eps) * weight, per row (Zhang & Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import numpy as np


def rms_norm_ref(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Shapes: x [..., E], weight [E] -> [..., E]."""
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + eps) * weight


def rms_norm_cpu() -> Any:
    """Kernel: args = out, out_stride, x, x_stride, weight, width, n_segments, n_rows*, eps (float32 address).

    Every row holds `n_segments` runs of `width` (a multiple of 16) that share the weight: 1 for the hidden
    state,
    the number of heads for q/k norm. Works in place.
    """
    import math

    from ..cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, out_stride, x, x_stride = (
            v.get_i64(args),
            v.get_i64(args + 8),
            v.get_i64(args + 16),
            v.get_i64(args + 24),
        )
        weight, width, n_segments = v.get_i64(args + 32), v.get_i64(args + 40), v.get_i64(args + 48)
        n_rows, eps = v.get_i64(v.get_i64(args + 56)), v.get_f32(v.get_i64(args + 64))
        n_units = n_rows * n_segments
        for unit in range(n_units * thread // n_threads, n_units * (thread + 1) // n_threads):
            row, segment = unit // n_segments, unit % n_segments
            source = x + row * x_stride + segment * width * 4
            target = out + row * out_stride + segment * width * 4
            squares = v.zero()
            for i in range(0, width * 4, 64):
                piece = v.load_f32(source + i)
                squares = v.fma(piece, piece, squares)
            mean = v.hsum(squares) / np.float32(width) + eps
            scale = v.splat(np.float32(1) / np.float32(math.sqrt(mean)))
            for i in range(0, width * 4, 64):
                normed = v.mul(v.load_f32(source + i), scale)
                v.store_f32(target + i, v.mul(normed, v.load_f32(weight + i)))

    return kernel

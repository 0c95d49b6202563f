"""out = silu(gate) * up, the gate of a SwiGLU feed-forward (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

from typing import Any

import numpy as np


def silu_mul_ref(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    wide = gate.astype(np.float64)
    return wide / (1 + np.exp(-wide)) * up


def silu_mul_cpu() -> Any:
    """Args: out, gate, up, stride (bytes, of all three), width (multiple of 16), n_rows*."""
    from ..cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, gate, up = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        stride, width, n_rows = v.get_i64(args + 24), v.get_i64(args + 32), v.get_i64(v.get_i64(args + 40))
        n_vectors = width // 16
        n_units = n_rows * n_vectors
        for unit in range(n_units * thread // n_threads, n_units * (thread + 1) // n_threads):
            offset = unit // n_vectors * stride + unit % n_vectors * 64
            v.store_f32(out + offset, v.mul(v.silu(v.load_f32(gate + offset)), v.load_f32(up + offset)))

    return kernel

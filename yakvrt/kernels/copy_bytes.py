"""Copies memory that lies in one piece: what gathers and repacking are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np


def copy_bytes_ref(source: np.ndarray) -> np.ndarray:
    """Shapes: source uint8 [n] -> uint8 [n]."""
    return source.copy()


def copy_bytes_cpu() -> Any:
    """Args: out, source, n_bytes (a multiple of 64). Threads share the bytes."""
    from ..cpu import vector_ops as v

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        out, source, n_bytes = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        first, last = v.share(n_bytes // 64, thread, n_threads, 0)
        for i in range(first * 64, last * 64, 64):
            v.store_f32(out + i, v.load_f32(source + i))

    return kernel

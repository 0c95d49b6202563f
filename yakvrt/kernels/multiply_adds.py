"""Multiplies and adds in registers alone: what keeps multiprocessors busy while something is copied."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work


def multiply_adds_ref(x: np.ndarray, n_times: int) -> np.ndarray:
    """x becomes x / 2 + 1, n_times. Shapes: x float32 [n] -> [n]; the same bits on a GPU."""
    out = x.copy()
    for _ in range(n_times):
        out = out * np.float32(0.5) + np.float32(1)
    return out


def multiply_adds_cuda(g: Any) -> CudaKernel:
    """multiply_adds_ref in place. Grid: blocks of 256 numbers."""
    threads = 256

    def kernel(x, n_times):  # type: ignore[no-untyped-def]
        i = g.block() * threads + g.thread()
        value = x[i]
        for _ in range(n_times):
            value = g.fma(value, g.float32(0.5), g.float32(1))
        x[i] = value

    return CudaKernel(kernel, "f32* i32", threads, opcodes=("FFMA",), work=Work("number", 8, 2))

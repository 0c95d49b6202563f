"""out = silu(gate) * up, the gate of a feed-forward (Shazeer, arXiv 2002.05202).

On the CPU a mode of matmul.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work


def swiglu_ref(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """In float64."""
    wide = gate.astype(np.float64)
    return wide / (1 + np.exp(-wide)) * up


def swiglu_cuda(g: Any) -> CudaKernel:
    """Contiguous rows of `width` numbers, a multiple of 4; `out` may be `gate` or `up`.

    Grid: x, blocks of 1024 columns; y, rows.
    Differs: relative 1e-6.
    """
    threads = 256
    minus_log2_e = -1.4426950408889634

    @g.inline
    def gated(gate, up):  # type: ignore[no-untyped-def]
        return gate * g.reciprocal(g.float32(1) + g.exp2(gate * g.float32(minus_log2_e))) * up

    def kernel(out, gate, up, width, n_rows):  # type: ignore[no-untyped-def]
        row, column = g.block_y(), (g.block() * threads + g.thread()) * 4
        if row < n_rows[0] and column < width:
            at = g.int64(row) * width + column
            a, b, c, d = g.load_f32x4(gate, at)
            ua, ub, uc, ud = g.load_f32x4(up, at)
            g.store_f32x4(out, at, gated(a, ua), gated(b, ub), gated(c, uc), gated(d, ud))

    return CudaKernel(
        kernel,
        "f32* f32* f32* i32 i64*",
        threads,
        opcodes=("LDG.E.128", "STG.E.128", "MUFU.EX2"),
        work=Work("number", 12, 6),
    )

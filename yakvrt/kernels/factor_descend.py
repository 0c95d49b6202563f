"""A CUDA kernel by which the factors of queries and keys follow each new one (LRQK)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work

DAMPING = 1e-6  # of the length of a step


def factor_descend_ref(b: np.ndarray, h: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One step down the gradient of |h B - x|^2, as long as the line allows: with the error e = h B - x, B
    less |h|^2 |e|^2 / (|h|^4 |e|^2 + damping) times h^T e.

    Shapes: b float32 [..., r, D], h [..., 1, r], x [..., 1, D] -> [..., r, D].
    """
    error = h @ b - x
    size = (h**2).sum(axis=-1, keepdims=True)
    length = size * (error**2).sum(axis=-1, keepdims=True)
    lower: np.ndarray = b - length / (size * length + np.float32(DAMPING)) * (h.swapaxes(-1, -2) @ error)
    return lower


def factor_descend_cuda(g: Any) -> CudaKernel:
    """factor_descend_ref of B_Q and of B_K for every query head of a batch, `sharing` of which share a KV
    head, in place.

    Grid: x, segments, query heads of a row; y, 2: of queries and of keys.
    Shapes: factors float32 [slots][heads][2][rank][D]; q_hat and k_hat float32 [segments][width]; q and k
    float32 [B] rows of heads, strides in numbers. D up to 256.
    """
    threads, most, damping = 128, 256, DAMPING
    warps = threads // 32

    def kernel(  # type: ignore[no-untyped-def]
        factors, q_hat, k_hat, width, q, q_stride, k, k_stride, rank, head_dim, slots, n_rows, n_heads,
        sharing,
    ):  # fmt: skip
        segment, thread = g.block(), g.thread()
        row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if row >= n_rows[0]:
            return
        head = g.int32(segment - row * n_heads)
        hat, given = q_hat, g.shifted(q, g.int64(row) * q_stride + head * head_dim)
        if g.block_y() == 1:
            kv_head = g.int32(g.uint32(head) // g.uint32(sharing))
            hat, given = k_hat, g.shifted(k, g.int64(row) * k_stride + kv_head * head_dim)
        hat = g.shifted(hat, segment * width)
        owner = (slots[row] * n_heads + head) * 2 + g.block_y()
        basis = g.shifted(factors, owner * rank * head_dim)
        errors, sums, size = g.shared_f32(most), g.shared_f32(warps), g.float32(0)
        for a in range(rank):
            size = g.fma(hat[a], hat[a], size)
        squares = g.float32(0)
        for i in range(thread, head_dim, g.int32(threads)):
            error = -given[i]
            for a in range(rank):
                error = g.fma(hat[a], basis[a * head_dim + i], error)
            errors[i] = error
            squares = g.fma(error, error, squares)
        squares = g.warp_sum(squares)
        if thread % 32 == 0:
            sums[thread // 32] = squares
        g.sync_threads()
        squares = g.float32(0)
        for warp in range(warps):
            squares += sums[warp]
        length = size * squares
        rate = g.divide(length, g.fma(size, length, g.float32(damping)))
        for at in range(thread, rank * head_dim, g.int32(threads)):
            basis[at] -= rate * hat[at // head_dim] * errors[at % head_dim]

    return CudaKernel(
        kernel,
        "f32* f32* f32* i32 f32* i32 f32* i32 i32 i32 i64* i64* i32 i32",
        threads,
        work=Work("number of a factor", 12, 4),
    )

"""A CUDA kernel for the proxies of a new query and its key (LRQK, section 3.3 of arXiv 2510.23649)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel
from .factor_resident import MAX_RANK
from .key_factors import RIDGE, divide, project

ITERATIONS = 2


def factor_solve_ref(
    known: np.ndarray, square: np.ndarray, q: np.ndarray, k: np.ndarray, b_k: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least squares for both in turn, from factor_resident_ref and the products of the new key.

    Shapes: known float32 [..., 1, r], square [..., r, r], q and k [..., 1, D], b_k [..., r, D] -> the proxies
    of the query and of the key, [..., 1, r].
    """
    dot, back, k_hat = q @ k.swapaxes(-1, -2), b_k.swapaxes(-1, -2), project(k, b_k)
    for _ in range(ITERATIONS):
        q_hat = divide(known + dot * k_hat, square + k_hat.swapaxes(-1, -2) @ k_hat)
        k_hat = divide(k @ back + dot * q_hat, b_k @ back + q_hat.swapaxes(-1, -2) @ q_hat)
    return q_hat, k_hat


def factor_solve_cuda(g: Any) -> CudaKernel:
    """factor_solve_ref for every query head of a batch, `sharing` of which share a KV head, by Cholesky
    factors in float32: no pivot is smaller than what is added to the diagonal.

    Grid: a block for each segment, a query head of a row.
    Shapes: q_hat and k_hat float32 [segments][width], zeros behind rank; known and square of
    factor_resident_cuda; q and k float32 [B] rows of heads, strides in numbers; factors float32
    [slots][heads][2][rank][D]. Scratch: work float32 [segments][2][rank][rank]. rank up to 256.
    """
    threads, most, ridge, iterations = 128, MAX_RANK, RIDGE, ITERATIONS

    @g.inline
    def solve(x, matrix, rank, pivots, thread):  # type: ignore[no-untyped-def]
        """x = x matrix^-1; the lower half of the matrix becomes its factor, but for the pivots."""
        least = g.float32(0)
        for i in range(rank):
            least += matrix[i * rank + i]
        least = g.fma(g.divide(least, g.float32(rank)), g.float32(ridge), g.float32(1e-30))
        for j in range(rank):
            root = g.rsqrt(max(matrix[j * rank + j] + least, least))
            for i in range(j + 1 + thread, rank, g.int32(threads)):
                matrix[i * rank + j] *= root
            if thread == 0:
                pivots[j] = root
                x[j] *= root
            g.sync_threads()
            n = g.int32(rank - j - 1)
            for at in range(thread, n * n, g.int32(threads)):
                a, b = g.int32(j + 1 + at // n), g.int32(j + 1 + at % n)
                if b <= a:
                    below = matrix[a * rank + j] * matrix[b * rank + j]
                    matrix[a * rank + b] -= below
            for i in range(j + 1 + thread, rank, g.int32(threads)):
                x[i] -= matrix[i * rank + j] * x[j]
            g.sync_threads()
        for back in range(rank):
            j = g.int32(rank - 1 - back)
            if thread == 0:
                x[j] *= pivots[j]
            g.sync_threads()
            for i in range(thread, j, g.int32(threads)):
                x[i] -= matrix[j * rank + i] * x[j]
            g.sync_threads()

    @g.inline
    def refit(x, other, known, square, matrix, dot, rank, pivots, thread):  # type: ignore[no-untyped-def]
        """x of known + dot * other, and square + the product of other with itself."""
        for a in range(thread, rank, g.int32(threads)):
            x[a] = g.fma(dot, other[a], known[a])
        for at in range(thread, rank * rank, g.int32(threads)):
            matrix[at] = g.fma(other[at // rank], other[at % rank], square[at])
        g.sync_threads()
        solve(x, matrix, rank, pivots, thread)

    def kernel(  # type: ignore[no-untyped-def]
        q_hat, k_hat, width, known, square, q, q_stride, k, k_stride, factors, work, rank, head_dim, slots,
        n_rows, n_heads, sharing,
    ):  # fmt: skip
        segment, thread = g.block(), g.thread()
        row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if row >= n_rows[0]:
            return
        head = g.int32(segment - row * n_heads)
        basis = g.shifted(factors, ((slots[row] * n_heads + head) * 2 + 1) * rank * head_dim)
        kv_head = g.int32(g.uint32(head) // g.uint32(sharing))
        query = g.shifted(q, g.int64(row) * q_stride + head * head_dim)
        key = g.shifted(k, g.int64(row) * k_stride + kv_head * head_dim)
        known, square = g.shifted(known, segment * rank), g.shifted(square, segment * rank * rank)
        gram = g.shifted(work, segment * 2 * rank * rank)
        matrix = g.shifted(gram, rank * rank)
        key_known, pivots, zeros = g.shared_f32(most), g.shared_f32(most), g.shared_f32(most)
        of_q, of_k = g.shared_f32(most), g.shared_f32(most)
        dot = g.float32(0)
        for i in range(g.lane(), head_dim, g.int32(32)):
            dot = g.fma(query[i], key[i], dot)
        dot = g.warp_sum(dot)
        for a in range(thread, rank, g.int32(threads)):
            total = g.float32(0)
            for i in range(head_dim):
                total = g.fma(key[i], basis[a * head_dim + i], total)
            key_known[a], zeros[a] = total, 0
        for at in range(thread, rank * rank, g.int32(threads)):
            a, b, total = at // rank, at % rank, g.float32(0)
            for i in range(head_dim):
                total = g.fma(basis[a * head_dim + i], basis[b * head_dim + i], total)
            gram[at] = total
        g.sync_threads()
        refit(of_k, zeros, key_known, gram, matrix, dot, rank, pivots, thread)
        for _ in range(iterations):
            refit(of_q, of_k, known, square, matrix, dot, rank, pivots, thread)
            refit(of_k, of_q, key_known, gram, matrix, dot, rank, pivots, thread)
        for a in range(thread, width, g.int32(threads)):
            at = segment * width + a
            q_hat[at] = of_q[a] if a < rank else g.float32(0)
            k_hat[at] = of_k[a] if a < rank else g.float32(0)

    return CudaKernel(
        kernel,
        "f32* f32* i32 f32* f32* f32* i32 f32* i32 f32* f32* i32 i32 i64* i64* i32 i32",
        threads,
    )

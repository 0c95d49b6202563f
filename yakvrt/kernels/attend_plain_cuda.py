"""Attention on a GPU in float32, for head dimensions and KV rows that the tensor cores' kernels do not take.

It serves decode and prompts alike: every row attends to its slot up to its own position.
"""

from __future__ import annotations

from typing import Any

from .attend_decode_cuda import LOG2_E
from .attend_fragments import LEAST
from .cuda_kernel import CudaKernel, Work

WARPS = 4
MAX_HEAD_DIM = 256


def attend_plain_cuda(g: Any, head_dim: int, kind: str) -> CudaKernel:
    """Rows whose keys and values were appended before; a warp takes 32 positions at a time, a lane one of
    them for its score and head_dim / 32 dimensions of the values.

    Strides count numbers; those of the caches are even. `scale` is 1 / sqrt(D).
    Grid: x, query heads; y, rows.

    Raises: ValueError.
    """
    if head_dim % 2 or not 2 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(
            f"no CUDA attention of heads of {head_dim} numbers: use even ones up to {MAX_HEAD_DIM}"
        )
    if kind not in ("f32", "f16", "bf16"):
        raise ValueError(f"no CUDA attention over KV rows of {kind}: use f32, f16 or bf16")
    threads, pairs, pitch = WARPS * 32, head_dim // 2, head_dim + 2
    n_own = -(-pairs // 32)
    n_sums, n_held = 2 * n_own, WARPS * pitch
    least, log2_e = LEAST, LOG2_E
    low, high = (g.low_f16, g.high_f16) if kind == "f16" else (g.low_bf16, g.high_bf16)

    @g.inline
    def exact_pair(rows, i):  # type: ignore[no-untyped-def]
        return rows[2 * i], rows[2 * i + 1]

    @g.inline
    def half_pair(rows, i):  # type: ignore[no-untyped-def]
        word = rows[i]
        return low(word), high(word)

    pair_of = exact_pair if kind == "f32" else half_pair
    words = head_dim if kind == "f32" else pairs  # of a row
    per_word = 1 if kind == "f32" else 2

    def kernel(  # type: ignore[no-untyped-def]
        out, out_stride, q, q_stride, k_cache, v_cache, slot_stride, head_stride, slots, positions, n_rows,
        group, scale,
    ):  # fmt: skip
        row, head = g.block_y(), g.block()
        if row < n_rows[0]:
            thread, lane, warp = g.thread(), g.lane(), g.thread() // 32
            kv_head = g.int32(g.uint32(head) // g.uint32(group))
            base = (slots[row] * slot_stride + kv_head * head_stride) // per_word
            k, v = g.shifted(k_cache, base), g.shifted(v_cache, base)
            query = g.shared_f32(head_dim)
            for i in range(thread, head_dim, threads):
                query[i] = q[g.int64(row) * q_stride + head * head_dim + i] * (scale * g.float32(log2_e))
            g.sync_threads()
            length = g.int32(positions[row] + 1)
            sums = g.local_f32(n_sums)
            for i in range(n_sums):
                sums[i] = g.float32(0)
            largest, total = g.float32(least), g.float32(0)
            for first in range(warp * 32, length, threads):
                own_key = g.shifted(k, g.int64(min(g.int32(first + lane), length - 1)) * words)
                score = g.float32(0)
                for i in range(pairs):
                    a, b = pair_of(own_key, i)
                    score = g.fma(b, query[2 * i + 1], g.fma(a, query[2 * i], score))
                if first + lane >= length:
                    score = g.float32(least)
                top = max(largest, g.warp_max(score))
                shrink, weight = g.exp2(largest - top), g.exp2(score - top)
                largest, total = top, total * shrink + g.warp_sum(weight)
                for i in range(n_sums):
                    sums[i] *= shrink
                for j in range(min(32, length - first)):
                    factor = g.shuffle_from(weight, j)
                    value = g.shifted(v, g.int64(first + j) * words)
                    for i in range(n_own):
                        if i * 32 + lane < pairs:
                            a, b = pair_of(value, i * 32 + lane)
                            sums[2 * i] = g.fma(factor, a, sums[2 * i])
                            sums[2 * i + 1] = g.fma(factor, b, sums[2 * i + 1])
            held = g.shared_f32(n_held)
            own = warp * pitch
            for i in range(n_own):
                if i * 32 + lane < pairs:
                    held[own + 2 * (i * 32 + lane)] = sums[2 * i]
                    held[own + 2 * (i * 32 + lane) + 1] = sums[2 * i + 1]
            if lane == 0:
                held[own + head_dim], held[own + head_dim + 1] = largest, total
            g.sync_threads()
            for i in range(WARPS):
                largest = max(largest, held[i * pitch + head_dim])
            for dim in range(thread, head_dim, threads):
                joined, total = g.float32(0), g.float32(0)
                for i in range(WARPS):
                    factor = g.exp2(held[i * pitch + head_dim] - largest)
                    joined = g.fma(factor, held[i * pitch + dim], joined)
                    total = g.fma(factor, held[i * pitch + head_dim + 1], total)
                out[g.int64(row) * out_stride + head * head_dim + dim] = g.divide(joined, total)

    cache = "f32*" if kind == "f32" else "u32*"
    return CudaKernel(
        kernel,
        f"f32* i32 f32* i32 {cache} {cache} i64 i64 i64* i64* i64* i32 f32",
        threads,
        work=Work("position of a query head", (8 if kind == "f32" else 4) * head_dim, 4 * head_dim),
    )

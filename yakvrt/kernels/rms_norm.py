"""out = x / sqrt(mean(x^2) + eps) * weight, per row (Zhang & Sennrich, arXiv 1910.07467)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work


def rms_norm_ref(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Shapes: x [..., E], weight [E] -> [..., E]."""
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + eps) * weight


def rms_norm_cpu() -> Any:
    """Normalises runs of `width` numbers; works in place.

    Args: out, out_stride, x, x_stride, weight, width (multiple of 16), n_segments, n_rows*, eps*,
    out_copy, x_copy.
    A row holds n_segments runs that share the weight: 1 for the hidden state, the heads for q/k norm.
    Where out_copy is not 0 every thread computes everything, into its own copy of `out`, that many bytes
    apart; x_copy says the same of x.
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
        out_copy = v.get_i64(args + 72)
        out += thread * out_copy
        x += thread * v.get_i64(args + 80)
        first, last = v.share(n_rows * n_segments, thread, n_threads, out_copy)
        for unit in range(first, last):
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


def rms_norm_cuda(g: Any) -> CudaKernel:
    """Normalises rows of `width` numbers; works in place. Width and strides are multiples of 4, in numbers.

    Grid: a block for each row.
    """
    threads = 256
    warps = threads // 32

    def kernel(out, out_stride, x, x_stride, weight, width, eps, n_rows):  # type: ignore[no-untyped-def]
        row, thread = g.block(), g.thread()
        if row < n_rows[0]:
            x = g.shifted(x, row * x_stride)
            out = g.shifted(out, row * out_stride)
            squares = g.float32(0)
            for i in range(thread * 4, width, threads * 4):
                a, b, c, d = g.load_f32x4(x, i)
                squares += a * a + b * b + (c * c + d * d)
            squares = g.warp_sum(squares)
            sums = g.shared_f32(warps)
            if thread % 32 == 0:
                sums[thread // 32] = squares
            g.sync_threads()
            squares = g.float32(0)
            for warp in range(warps):
                squares += sums[warp]
            scale = g.rsqrt(g.divide(squares, g.float32(width)) + eps)
            for i in range(thread * 4, width, threads * 4):
                a, b, c, d = g.load_f32x4(x, i)
                wa, wb, wc, wd = g.load_constant_f32x4(weight, i)
                g.store_f32x4(out, i, a * scale * wa, b * scale * wb, c * scale * wc, d * scale * wd)

    return CudaKernel(
        kernel,
        "f32* i32 f32* i32 f32* i32 f32 i64*",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("number", 8, 4),
    )


def head_norm_cuda(g: Any) -> CudaKernel:
    """Normalises every head of every row, all with one weight; see rms_norm_cuda.

    Grid: x, blocks of 4 heads; y, rows.
    """
    threads = 128
    warps = threads // 32

    def kernel(out, out_stride, x, x_stride, weight, head_dim, n_heads, eps, n_rows):  # type: ignore[no-untyped-def]
        row, head = g.block_y(), g.block() * warps + g.thread() // 32
        lane = g.thread() % 32
        if row < n_rows[0] and head < n_heads:
            x = g.shifted(x, row * x_stride + head * head_dim)
            out = g.shifted(out, row * out_stride + head * head_dim)
            squares = g.float32(0)
            for i in range(lane * 4, head_dim, 128):
                a, b, c, d = g.load_f32x4(x, i)
                squares += a * a + b * b + (c * c + d * d)
            scale = g.rsqrt(g.divide(g.warp_sum(squares), g.float32(head_dim)) + eps)
            for i in range(lane * 4, head_dim, 128):
                a, b, c, d = g.load_f32x4(x, i)
                wa, wb, wc, wd = g.load_constant_f32x4(weight, i)
                g.store_f32x4(out, i, a * scale * wa, b * scale * wb, c * scale * wc, d * scale * wd)

    return CudaKernel(
        kernel,
        "f32* i32 f32* i32 f32* i32 i32 f32 i64*",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("number", 8, 4),
    )

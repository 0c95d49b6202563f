"""Rotary position embedding, halves layout: dimension i pairs with i + D/2 (Su et al., arXiv 2104.09864).

Weights of GGUF files with interleaved pairs are reordered at load (weights.py), so there is one layout here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work


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
    """Cosines and sines of the batch's positions; a prompt needs them anew in every layer, so no libm here.

    Args: table, positions (int64), inv_freq (float32), half, n_rows*, scale*.
    Differs: by at most 1e-11 before the rounding to float32, for angles below 2**20.
    """
    import math

    from ..cpu import vector_ops as v

    # pi/2 in two parts; a multiple of the first, of 33 bits, is exact
    HALF_PI, HALF_PI_REST = 1.5707963267341256, 6.077100506506192e-11
    S3, S5, S7, S9, S11 = (1 / math.factorial(n) for n in (3, 5, 7, 9, 11))
    C4, C6, C8, C10, C12 = (1 / math.factorial(n) for n in (4, 6, 8, 10, 12))

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        table, positions, inv_freq = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        half, n_rows = v.get_i64(args + 24), v.get_i64(v.get_i64(args + 32))
        scale = v.get_f32(v.get_i64(args + 40))
        first, last = v.share(n_rows, thread, n_threads, 0)
        for row in range(first, last):
            position = np.float32(v.get_i64(positions + row * 8))
            cosines = table + row * 8 * half
            sines = cosines + 4 * half
            for i in range(0, 4 * half, 4):  # without branches: it vectorises
                angle = np.float64(position * v.f32_at(inv_freq, i))
                quarters = np.rint(angle * (2 / math.pi))
                r = (angle - quarters * HALF_PI) - quarters * HALF_PI_REST
                z = r * r
                sine = r - r * z * (S3 - z * (S5 - z * (S7 - z * (S9 - z * S11))))
                cosine = 1 - z * (0.5 - z * (C4 - z * (C6 - z * (C8 - z * (C10 - z * C12)))))
                quadrant = np.int32(quarters)
                swapped = quadrant & 1
                c, s = (sine, cosine) if swapped else (cosine, sine)
                v.put_f32_at(cosines, i, np.float32(-c if (quadrant + 1) & 2 else c) * scale)
                v.put_f32_at(sines, i, np.float32(-s if quadrant & 2 else s) * scale)

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
                a, b = v.f32_at(low, i), v.f32_at(high, i)
                c, s = v.f32_at(cos, i), v.f32_at(sin, i)
                v.put_f32_at(out_low, i, a * c - b * s)
                v.put_f32_at(out_high, i, b * c + a * s)

    return kernel


def rope_table_cuda(g: Any) -> CudaKernel:
    """Cosines and sines of the batch's positions.

    Grid: x, blocks of 128 of the `half` frequencies; y, rows.
    Differs: by at most 2e-7 times `scale`, for angles below 2**20.
    """
    import math

    threads = 128
    # pi/2 in three float32 parts: the angle less a multiple of the first is exact in float32
    parts, rest = [], math.pi / 2
    for _ in range(3):
        parts.append(float(np.float32(rest)))
        rest -= parts[-1]
    P1, P2, P3 = parts
    QUARTERS = 2 / math.pi
    S3, S5, S7, S9 = (1 / math.factorial(n) for n in (3, 5, 7, 9))
    C4, C6, C8, C10 = (1 / math.factorial(n) for n in (4, 6, 8, 10))

    def kernel(table, positions, inv_freq, half, scale, n_rows):  # type: ignore[no-untyped-def]
        row, i = g.block_y(), g.block() * threads + g.thread()
        if row < n_rows[0] and i < half:
            angle = g.float32(positions[row]) * inv_freq[i]
            quarters = g.round_even(angle * g.float32(QUARTERS))
            r = g.fma(-quarters, g.float32(P1), angle)
            r = g.fma(-quarters, g.float32(P2), r)
            r = g.fma(-quarters, g.float32(P3), r)
            z = r * r
            s = g.fma(z, g.float32(S9), g.float32(-S7))
            s = g.fma(z, g.fma(z, s, g.float32(S5)), g.float32(-S3))
            sine = g.fma(r * z, s, r)
            c = g.fma(z, g.float32(-C10), g.float32(C8))
            c = g.fma(z, g.fma(z, c, g.float32(-C6)), g.float32(C4))
            cosine = g.fma(z, g.fma(z, c, g.float32(-0.5)), g.float32(1))
            quadrant = g.int32(quarters)
            if quadrant & 1:
                sine, cosine = cosine, sine
            if (quadrant + 1) & 2:
                cosine = -cosine
            if quadrant & 2:
                sine = -sine
            at = g.int64(row) * half * 2 + i
            table[at] = cosine * scale
            table[at + half] = sine * scale

    return CudaKernel(kernel, "f32* i64* f32* i32 f32 i64*", threads, work=Work("number", 4, 10))


def rope_cuda(g: Any) -> CudaKernel:
    """Rotates every head of every row; `half`, half a head dimension, is a multiple of 4. Works in place.

    Grid: x, blocks of 128 threads with 4 pairs each; y, rows.
    """
    threads = 128

    def kernel(out, x, stride, n_heads, half, table, n_rows):  # type: ignore[no-untyped-def]
        row, pair = g.block_y(), (g.block() * threads + g.thread()) * 4
        if row < n_rows[0] and pair < n_heads * half:
            head = g.int32(g.uint32(pair) // g.uint32(half))
            i = pair - head * half
            low = g.int64(row) * stride + head * half * 2 + i
            cos = g.int64(row) * half * 2 + i
            a0, a1, a2, a3 = g.load_f32x4(x, low)
            b0, b1, b2, b3 = g.load_f32x4(x, low + half)
            c0, c1, c2, c3 = g.load_f32x4(table, cos)
            s0, s1, s2, s3 = g.load_f32x4(table, cos + half)
            g.store_f32x4(
                out, low, a0 * c0 - b0 * s0, a1 * c1 - b1 * s1, a2 * c2 - b2 * s2, a3 * c3 - b3 * s3
            )
            g.store_f32x4(
                out, low + half, b0 * c0 + a0 * s0, b1 * c1 + a1 * s1, b2 * c2 + a2 * s2, b3 * c3 + a3 * s3
            )

    return CudaKernel(
        kernel,
        "f32* f32* i32 i32 i32 f32* i64*",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("number", 8, 3),
    )

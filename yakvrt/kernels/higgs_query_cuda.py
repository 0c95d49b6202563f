"""A CUDA kernel that makes queries ready for higgs_score_cuda.py: rotated, as bytes."""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work
from .higgs_layout import SELECTORS
from .rotate import make_rotate_registers, rotation_factors, rotation_lanes


def query_words(kind: str, head_dim: int) -> int:
    """Words of the bytes of one query, zero behind its own."""
    selector = SELECTORS[kind]
    return selector.tile_vectors(head_dim) * selector.dim


def higgs_query_cuda(g: Any, kind: str, head_dim: int, centred: bool, signs: bool) -> CudaKernel:
    """Queries rotated and rounded to bytes.

    Grid: blocks of 4 * 32 / rotation_lanes(head_dim) queries.
    Shapes: queries uint32 [B, Hq, query_words], records float32 [B, Hq, 4]: what scores are multiplied by,
    what is added behind and before; q float32 [B][q_stride], means float32 [slots][means_slot_stride] of
    [Hk, D]. `grid_step`: of byte_grid. Strides in numbers, multiples of 4.
    Raises: ValueError for a size without a rotation.
    """
    n_words = query_words(kind, head_dim)
    m, power = rotation_factors(head_dim)
    lanes, threads = rotation_lanes(head_dim), 128
    n, n_held, n_steps = power // lanes, head_dim // lanes, lanes.bit_length() - 1
    rotate, seventh, smallest, half = make_rotate_registers(g, head_dim, False, signs), 1 / 127, 1e-30, -127.5

    @g.inline
    def row_sum(value):  # type: ignore[no-untyped-def]
        for k in range(n_steps):
            value += g.shuffle_xor(value, 1 << k)
        return value

    def kernel(  # type: ignore[no-untyped-def]
        queries,
        records,
        q,
        q_stride,
        means,
        means_slot_stride,
        slots,
        n_heads,
        group,
        factor,
        grid_step,
        n_rows,
    ):
        unit = g.int32(g.block() * (threads // lanes) + g.thread() // lanes)
        lane, row = g.int32(g.thread() % lanes), g.int32(g.uint32(unit) // g.uint32(n_heads))
        here = row < n_rows[0]
        head = g.int32(unit - row * n_heads)
        held, offset = g.local_f32(n_held), g.float32(0)
        for j in range(m):
            for i in range(0, n, 4):
                a, b, c, d = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
                if here:
                    place = j * power + i * lanes + lane * 4
                    a, b, c, d = g.load_f32x4(q, g.int64(row) * q_stride + head * head_dim + place)
                    if centred:
                        at = (
                            slots[row] * means_slot_stride
                            + g.uint32(head) // g.uint32(group) * head_dim
                            + place
                        )
                        x, y, z, w = g.load_constant_f32x4(means, at)
                        offset += a * x + b * y + (c * z + d * w)
                at = j * n + i
                held[at], held[at + 1], held[at + 2], held[at + 3] = a, b, c, d
        offset = row_sum(offset)
        rotate(held, lane)
        largest = g.float32(0)
        for i in range(n_held):
            largest = max(largest, max(held[i], -held[i]))
        for k in range(n_steps):
            largest = max(largest, g.shuffle_xor(largest, 1 << k))
        step, inverse, total = largest * g.float32(seventh), g.float32(0), g.float32(0)
        if step > g.float32(smallest):
            inverse = g.divide(g.float32(1), step)
        for i in range(n_held):
            held[i] = g.round_even(held[i] * inverse)
            total += held[i]
        total = row_sum(total)
        if here:
            queries = g.shifted(queries, g.int64(unit) * n_words)
            for j in range(m):
                for i in range(0, n, 4):
                    at = j * n + i
                    a, b = g.uint32(g.int32(held[at])), g.uint32(g.int32(held[at + 1]))
                    c, d = g.uint32(g.int32(held[at + 2])), g.uint32(g.int32(held[at + 3]))
                    low, high = g.permute_bytes(a, b, 0x0040), g.permute_bytes(c, d, 0x0040)
                    word = g.int32(j * (power // 4) + i // 4 * lanes + lane)
                    queries[word] = g.permute_bytes(low, high, 0x5410)
            for word in range(g.int32(head_dim // 4 + lane), g.int32(n_words), g.int32(lanes)):
                queries[word] = 0
            if lane == 0:
                after, before = offset * factor, total * g.float32(half)
                g.store_f32x4(
                    records, g.int64(unit) * 4, step * factor * grid_step, after, before, g.float32(0)
                )

    return CudaKernel(
        kernel,
        "u32* f32* f32* i64 f32* i64 i64* i32 i32 f32 f32 i64*",
        threads,
        opcodes=("LDG.E.128",),
        work=Work("query", 4 * head_dim + 4 * n_words + 16, 10 * head_dim),
    )

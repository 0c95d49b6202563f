"""A CUDA kernel that turns host rows of HIGGS codes back into rows (see decode_ref)."""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work
from .rotate import make_rotate_registers, rotation_factors, rotation_lanes

DIMS = (2, 4)


def higgs_decode_cuda(
    g: Any, dim: int, n_points: int, head_dim: int, rotated: bool, centred: bool, signs: bool
) -> CudaKernel:
    """Rows firsts[b] .. lasts[b] - 1 of the slots of a batch, of every KV head, from codes of one byte; they
    go to targets[b] and behind. With `rotated` R u instead of u; `centred` adds the mean, of rows that are
    not.

    Grid: x, blocks of 128 / rotation_lanes(head_dim) rows; y, batch rows times KV heads.
    Shapes: out float32 with rows of head_dim, strides multiples of 4; codes uint32, strides in words, rows of
    row_words; scales uint16 (float16), scale_step apart, means and search as in higgs_encode_cuda.
    Raises: ValueError for a grid or size without a kernel.
    """
    if dim not in DIMS or n_points not in (64, 256):
        raise ValueError(
            f"rows of {n_points} points of dimension {dim} have no CUDA kernel: use 64 or 256 points of"
            " dimension 2 or 4"
        )
    m, power = rotation_factors(head_dim)
    lanes, threads, half = rotation_lanes(head_dim), 128, n_points // 2
    n, n_held, at_once = power // lanes, head_dim // lanes, threads // lanes
    rotate = make_rotate_registers(g, head_dim, True, signs)

    def kernel(  # type: ignore[no-untyped-def]
        out,
        out_slot_stride,
        out_head_stride,
        codes,
        codes_slot_stride,
        codes_head_stride,
        row_words,
        scales,
        scales_slot_stride,
        scales_head_stride,
        scale_step,
        means,
        means_slot_stride,
        search_table,
        slots,
        n_heads,
        firsts,
        lasts,
        targets,
        n_rows,
    ):
        segment = g.block_y()
        batch_row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if batch_row >= n_rows[0]:
            return
        lane, index = g.int32(g.thread() % lanes), g.int32(g.block() * at_once + g.thread() // lanes)
        row = g.int64(firsts[batch_row]) + index
        here = row < lasts[batch_row]
        slot, head = slots[batch_row], segment - batch_row * n_heads
        codes = g.shifted(codes, slot * codes_slot_stride + head * codes_head_stride + row * row_words)
        held, scale = g.local_f32(n_held), g.float32(0)
        if here:
            at = slot * scales_slot_stride + head * scales_head_stride + row * scale_step
            scale = g.f32_from_f16(scales[at])
        for j in range(m):
            for i in range(0, n, 4):
                at, place = j * n + i, g.int32(j * power + i * lanes + lane * 4)
                for k in range(0, 4, dim):
                    code, factor = g.int32(0), scale
                    if here:
                        byte = g.int32((place + k) // dim)
                        code = g.int32(g.uint32(codes[byte // 4]) >> g.uint32(byte % 4 * 8)) & 255
                    if code >= half:
                        code, factor = g.int32(code - half), -scale
                    for e in range(dim):
                        held[at + k + e] = search_table[code * (dim + 1) + e] * factor
        if not rotated:
            rotate(held, lane)
        if here:
            to = g.int64(targets[batch_row]) + index
            out = g.shifted(out, slot * out_slot_stride + head * out_head_stride + to * head_dim)
            for j in range(m):
                for i in range(0, n, 4):
                    at, place = j * n + i, g.int32(j * power + i * lanes + lane * 4)
                    a, b, c, d = held[at], held[at + 1], held[at + 2], held[at + 3]
                    if centred:
                        x, y, z, w = g.load_constant_f32x4(
                            means, slot * means_slot_stride + head * head_dim + place
                        )
                        a, b, c, d = a + x, b + y, c + z, d + w
                    g.store_f32x4(out, place, a, b, c, d)

    return CudaKernel(
        kernel,
        "f32* i64 i64 u32* i64 i64 i32 u16* i64 i64 i32 f32* i64 f32* i64* i32 i64* i64* i64* i64*",
        threads,
        opcodes=("STG.E.128",),
        work=Work("row", head_dim // dim + 2 + 4 * head_dim, head_dim * 8),
    )

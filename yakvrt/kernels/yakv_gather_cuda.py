"""A CUDA kernel that gathers rows straight from pinned host memory."""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work

N_AHEAD = 4  # loads of 16 bytes that a lane has under way


def yakv_gather_cuda(g: Any, row_bytes: int) -> CudaKernel:
    """Copies rows and their scales from pinned host memory to places on the device.

    Grid: any number of blocks. A lane has N_AHEAD loads of 16 bytes under way, a block 16 KB: few blocks keep
    the link to the host busy, and leave the others' multiprocessors alone.
    Shapes: out and rows uint32 with rows of row_bytes, out_scales and scales uint32 (two float16); strides of
    slots and heads in words. ids (rows) and targets (places) int32 [segments][ids_stride], counts int64
    [segments].
    Raises: ValueError for rows that are not multiples of 16 bytes, or larger than 1024.
    """
    if row_bytes % 16 or not 16 <= row_bytes <= 1024:
        raise ValueError(f"rows of {row_bytes} bytes cannot be gathered: use a multiple of 16 up to 1024")
    threads, n_ahead, pieces, row_words = 256, N_AHEAD, row_bytes // 16, row_bytes // 4
    n_held, warps, chunk = 4 * N_AHEAD, threads // 32, 32 * N_AHEAD

    def kernel(  # type: ignore[no-untyped-def]
        out,
        out_slot_stride,
        out_head_stride,
        out_scales,
        out_scales_slot_stride,
        out_scales_head_stride,
        rows,
        slot_stride,
        head_stride,
        scales,
        scales_slot_stride,
        scales_head_stride,
        slots,
        n_heads,
        ids,
        targets,
        ids_stride,
        counts,
        n_rows,
    ):
        lane = g.int32(g.thread() % 32)
        warp, n_warps = g.int32(g.block() * warps + g.thread() // 32), g.int32(g.n_blocks() * warps)
        n_segments, next_chunk = g.int32(n_rows[0] * n_heads), warp
        for segment in range(g.int32(0), n_segments, g.int32(1)):
            count = g.int32(counts[segment])
            n_chunks = g.int32((count * pieces + chunk - 1) // chunk)
            row_index = g.int32(g.uint32(segment) // g.uint32(n_heads))
            head, slot = segment - row_index * n_heads, slots[row_index]
            own_ids = g.shifted(ids, g.int64(segment) * ids_stride)
            own_targets = g.shifted(targets, g.int64(segment) * ids_stride)
            source = g.shifted(rows, slot * slot_stride + head * head_stride)
            target = g.shifted(out, slot * out_slot_stride + head * out_head_stride)
            source_scales = g.shifted(scales, slot * scales_slot_stride + head * scales_head_stride)
            target_scales = g.shifted(
                out_scales, slot * out_scales_slot_stride + head * out_scales_head_stride
            )
            while next_chunk < n_chunks:
                held, held_scales = g.local_u32(n_held), g.local_u32(n_ahead)
                own_rows, places = g.local_i32(n_ahead), g.local_i32(n_ahead)
                for k in range(n_ahead):  # all at once, or a row would wait for the ids of those before it
                    i = g.int32(min((next_chunk * chunk + k * 32 + lane) // pieces, count - 1))
                    own_rows[k], places[k] = own_ids[i], own_targets[i]
                for k in range(n_ahead):
                    at = g.int32(next_chunk * chunk + k * 32 + lane)
                    i, piece = g.int32(at // pieces), g.int32(at % pieces)
                    a, b, c, d, scale = g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0)
                    if i < count:
                        row = g.int64(own_rows[k])
                        a, b, c, d = g.load_constant_u32x4(source, row * row_words + piece * 4)
                        if piece == 0:
                            scale = g.uint32(source_scales[row])
                    held[4 * k], held[4 * k + 1], held[4 * k + 2], held[4 * k + 3] = a, b, c, d
                    held_scales[k] = scale
                for k in range(n_ahead):
                    at = g.int32(next_chunk * chunk + k * 32 + lane)
                    i, piece = g.int32(at // pieces), g.int32(at % pieces)
                    if i < count:
                        place = g.int64(places[k])
                        word = place * row_words + piece * 4
                        g.store_u32x4(
                            target, word, held[4 * k], held[4 * k + 1], held[4 * k + 2], held[4 * k + 3]
                        )
                        if piece == 0:
                            target_scales[place] = held_scales[k]
                next_chunk = g.int32(next_chunk + n_warps)
            next_chunk = g.int32(next_chunk - n_chunks)

    return CudaKernel(
        kernel,
        "u32* i64 i64 u32* i64 i64 u32* i64 i64 u32* i64 i64 i64* i32 i32* i32* i64 i64* i64*",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("row", 2 * row_bytes + 16, 0),
    )

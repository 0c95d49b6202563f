"""A CUDA kernel that makes the mean rows of selector blocks and leaves of keys what these do not tell (see
higgs_selector.py).
"""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work
from .higgs_encode_cuda import make_search
from .higgs_layout import BLOCK_TOKENS, LARGEST_SCALE, META_TOKENS, SELECTORS
from .rotate import make_rotate_registers, rotation_factors, rotation_lanes


def higgs_means_cuda(g: Any, kind: str, head_dim: int, centred: bool) -> CudaKernel:
    """Codes and scales of the mean rows of rows firsts[b] .. lasts[b] - 1 of the slots of a batch, of every
    KV head, in whole groups of 8; rest: the rows less their mean key and what the codes of their mean row
    stand for. The row firsts[b] lies at sources[b] of x and of rest.

    The mean of a group is rotated, not the rows, and what codes stand for is rotated back: an encoder rotates
    the rest. The unused bytes of a block become 0.
    Grid: x, blocks of 128 / rotation_lanes(head_dim) groups; y, batch rows times KV heads.
    Shapes: rest and x float32 with rows of head_dim, strides multiples of 4; blocks uint16, strides in
    numbers; means float32 [slots][means_slot_stride] of [Hk, D]; search_table: GridTables of the grid of mean
    rows, float32 [128][3].
    Raises: ValueError for a size without a rotation.
    """
    selector, block_tokens, group_tokens = SELECTORS[kind], BLOCK_TOKENS, META_TOKENS
    m, power = rotation_factors(head_dim)
    lanes, threads = rotation_lanes(head_dim), 128
    n, n_held, n_steps, at_once = power // lanes, head_dim // lanes, lanes.bit_length() - 1, threads // lanes
    half, stride, n_codes = 128, 4, n_held // 2  # a point of the grid's first half, half its square, nothing
    n_point_numbers, part, eighth, largest = half * stride, 1 / head_dim, 1 / group_tokens, LARGEST_SCALE
    block_numbers, codes_at = selector.block_bytes(head_dim) // 2, selector.mean_codes(head_dim) // 2
    scales_at, n_groups = selector.mean_scales(head_dim) // 2, block_tokens // group_tokens
    rotate, unrotate = (make_rotate_registers(g, head_dim, inverse, False) for inverse in (False, True))
    search = make_search(g, 2, 2 * half, stride, n_codes)

    def kernel(  # type: ignore[no-untyped-def]
        rest,
        blocks,
        blocks_slot_stride,
        blocks_head_stride,
        x,
        x_slot_stride,
        x_head_stride,
        means,
        means_slot_stride,
        search_table,
        slots,
        n_heads,
        firsts,
        lasts,
        sources,
        n_rows,
    ):
        segment, thread = g.block_y(), g.thread()
        batch_row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if batch_row >= n_rows[0]:
            return
        points = g.shared_f32(n_point_numbers)
        for i in range(thread, g.int32(n_point_numbers), g.int32(threads)):
            points[i] = search_table[i // stride * 3 + i % stride] if i % stride < 3 else g.float32(0)
        g.sync_threads()
        slot, head = slots[batch_row], segment - batch_row * n_heads
        lane, index = g.int32(thread % lanes), g.int32(g.block() * at_once + thread // lanes) * group_tokens
        row = g.int64(firsts[batch_row]) + index
        here = row < lasts[batch_row]
        place = slot * x_slot_stride + head * x_head_stride + (sources[batch_row] + index) * head_dim
        x, rest = g.shifted(x, place), g.shifted(rest, place)
        held, centre = g.local_f32(n_held), g.local_f32(n_held)
        for i in range(n_held):
            held[i], centre[i] = g.float32(0), g.float32(0)
        if here:
            for j in range(m):
                for i in range(0, n, 4):
                    at, own = j * n + i, g.int32(j * power + i * lanes + lane * 4)
                    e, f, h, o = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
                    if centred:
                        of_head = slot * means_slot_stride + head * head_dim + own
                        e, f, h, o = g.load_constant_f32x4(means, of_head)
                    for k in range(group_tokens):
                        a, b, c, d = g.load_f32x4(x, k * head_dim + own)
                        held[at], held[at + 1] = held[at] + (a - e), held[at + 1] + (b - f)
                        held[at + 2], held[at + 3] = held[at + 2] + (c - h), held[at + 3] + (d - o)
                    centre[at], centre[at + 1], centre[at + 2], centre[at + 3] = e, f, h, o
        for i in range(n_held):
            held[i] *= g.float32(eighth)
        rotate(held, lane)
        squares, inverse = g.float32(0), g.float32(0)
        for i in range(n_held):
            squares = g.fma(held[i], held[i], squares)
        for k in range(n_steps):
            squares += g.shuffle_xor(squares, 1 << k)
        size = g.sqrt(squares * g.float32(part))
        if size > g.float32(0):
            inverse = g.divide(g.float32(1), size)
        for i in range(n_held):
            held[i] *= inverse
        codes, scores = g.local_i32(n_codes), g.local_f32(n_codes)
        search(held, points, codes, scores)
        kept = g.f16_from_f32(min(size, g.float32(largest)))
        scale = g.f32_from_f16(kept)
        for i in range(n_codes):
            signed, at = scale if codes[i] < half else -scale, codes[i] % half * stride
            held[2 * i], held[2 * i + 1] = points[at] * signed, points[at + 1] * signed
        if here:
            blocks = g.shifted(blocks, slot * blocks_slot_stride + head * blocks_head_stride)
            blocks = g.shifted(blocks, row // block_tokens * block_numbers)
            group = g.int32(row % block_tokens) // group_tokens
            for j in range(m):
                for i in range(0, n, 4):
                    at, two = (j * n + i) // 2, g.int32(j * power + i * lanes + lane * 4) // 4
                    pair = g.uint16(codes[at] | codes[at + 1] << 8)
                    blocks[codes_at + two // 4 * 32 + group * 4 + two % 4] = pair
            if lane == 0:
                blocks[scales_at + group] = kept
            if lane < 3:  # 24 numbers behind the scales
                blocks[scales_at + n_groups + group * 3 + lane] = g.uint16(0)
        unrotate(held, lane)
        if here:
            for j in range(m):
                for i in range(0, n, 4):
                    at, own = j * n + i, g.int32(j * power + i * lanes + lane * 4)
                    e, f = held[at] + centre[at], held[at + 1] + centre[at + 1]
                    h, o = held[at + 2] + centre[at + 2], held[at + 3] + centre[at + 3]
                    for k in range(group_tokens):
                        a, b, c, d = g.load_f32x4(x, k * head_dim + own)
                        g.store_f32x4(rest, k * head_dim + own, a - e, b - f, c - h, d - o)

    return CudaKernel(
        kernel,
        "f32* u16* i64 i64 f32* i64 i64 f32* i64 f32* i64* i32 i64* i64* i64* i64*",
        threads,
        opcodes=("LDG.E.128", "LDS.128", "STG.E.128"),
        work=Work("group of rows", 8 * group_tokens * head_dim + head_dim // 2 + 2, head_dim // 2 * half * 5),
    )

"""A CUDA kernel that leaves of keys what their selector codes do not tell (see higgs_residual.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work
from .higgs_layout import BLOCK_TOKENS, META_TOKENS, SELECTORS, TILE_TOKENS
from .rotate import make_rotate_registers, rotation, rotation_factors, rotation_lanes


def subtract_estimates_ref(rows: np.ndarray, estimates: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    """Keys less their mean and their estimates, which are rotated; float64.

    Shapes: rows and estimates [n, D], mean [D] -> [n, D].
    """
    return rows - (0 if mean is None else mean) - estimates @ rotation(rows.shape[1]).astype(np.float64)


def make_add_estimate(g: Any, kind: str, head_dim: int) -> Any:
    """An inline add_estimate(held, block, token, words, grid_step, mean_words, mean_step, lane, here): adds
    to the numbers that a lane holds, as make_rotate_registers says, what scoring takes one of a block's 64
    keys to be; reads nothing unless `here`. words: GridTables.words8 as uint32 [256][d / 4]; grid_step: of
    byte_grid; mean_words [256] and mean_step: of the grid of mean rows, where the selector has them.
    """
    selector = SELECTORS[kind]
    dim, tile_tokens, n_parts = selector.dim, TILE_TOKENS, selector.dim // 4
    tile_words, scales_at = selector.tile_bytes(head_dim) // 4, selector.scales(head_dim) // 4
    m, power = rotation_factors(head_dim)
    lanes, middle = rotation_lanes(head_dim), 127.5
    n = power // lanes
    has_means, group_tokens = selector.mean_grid is not None, META_TOKENS
    mean_codes_at, mean_scales_at = selector.mean_codes(head_dim) // 4, selector.mean_scales(head_dim) // 4

    @g.inline
    def add_mean_row(held, block, group, words, grid_step, lane, here):  # type: ignore[no-untyped-def]
        factor = g.float32(0)
        if here:
            pair = block[mean_scales_at + group // 2]
            factor = (g.high_f16(pair) if group % 2 else g.low_f16(pair)) * grid_step
        for j in range(m):
            for i in range(0, n, 4):
                at, two = j * n + i, g.int32(j * power + i * lanes + lane * 4) // 4
                a, b = g.uint32(0), g.uint32(0)
                if here:
                    four = g.uint32(block[mean_codes_at + two // 4 * 16 + group * 2 + two % 4 // 2])
                    pair_of_codes = g.int32(four >> g.uint32(two % 2 * 16))
                    a, b = words[pair_of_codes & 255], words[pair_of_codes >> 8 & 255]
                held[at] += (g.float32(a & 255) - g.float32(middle)) * factor
                held[at + 1] += (g.float32(a >> g.uint32(8) & 255) - g.float32(middle)) * factor
                held[at + 2] += (g.float32(b & 255) - g.float32(middle)) * factor
                held[at + 3] += (g.float32(b >> g.uint32(8) & 255) - g.float32(middle)) * factor

    @g.inline
    def add_estimate(held, block, token, words, grid_step, mean_words, mean_step, lane, here):  # type: ignore[no-untyped-def]
        factor = g.float32(0)
        if here:
            pair = block[scales_at + token // 2]
            factor = (g.high_f16(pair) if token % 2 else g.low_f16(pair)) * grid_step
        codes = g.shifted(block, token // tile_tokens * tile_words + token % tile_tokens)
        for j in range(m):
            for i in range(0, n, 4):
                at, place = j * n + i, g.int32(j * power + i * lanes + lane * 4)
                sub_vector, word = g.int32(place // dim), g.uint32(0)
                if here:
                    four = g.uint32(codes[sub_vector // 4 * tile_tokens])
                    code = g.int32(four >> g.uint32(sub_vector % 4 * 8)) & 255
                    word = words[code * n_parts + place // 4 % n_parts]
                for e in range(4):
                    held[at + e] += (g.float32(word >> g.uint32(8 * e) & 255) - g.float32(middle)) * factor
        if has_means:
            add_mean_row(held, block, token // group_tokens, mean_words, mean_step, lane, here)

    return add_estimate


def higgs_residual_cuda(g: Any, kind: str, head_dim: int, centred: bool) -> CudaKernel:
    """Subtracts from rows firsts[b] .. lasts[b] - 1 of the slots of a batch, of every KV head, their mean and
    what scoring takes them to be, in place; the row firsts[b] lies at sources[b].

    An encoder rotates rows again; there and back they lose what float32 rounds.
    Grid: x, blocks of 128 / rotation_lanes(head_dim) rows; y, batch rows times KV heads.
    Shapes: x float32 with rows of head_dim, strides multiples of 4; blocks uint32, strides in words, of rows
    0, 64, ...; words to mean_step as in make_add_estimate; means float32 [slots][means_slot_stride] of
    [Hk, D].
    Raises: ValueError for a size without a rotation.
    """
    selector, block_tokens = SELECTORS[kind], BLOCK_TOKENS
    block_words = selector.block_bytes(head_dim) // 4
    m, power = rotation_factors(head_dim)
    lanes, threads = rotation_lanes(head_dim), 128
    n, n_held, at_once = power // lanes, head_dim // lanes, threads // lanes
    add_estimate = make_add_estimate(g, kind, head_dim)
    unrotate = make_rotate_registers(g, head_dim, True, False)

    def kernel(  # type: ignore[no-untyped-def]
        x,
        x_slot_stride,
        x_head_stride,
        blocks,
        blocks_slot_stride,
        blocks_head_stride,
        words,
        grid_step,
        mean_words,
        mean_step,
        means,
        means_slot_stride,
        slots,
        n_heads,
        firsts,
        lasts,
        sources,
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
        own = g.shifted(blocks, slot * blocks_slot_stride + head * blocks_head_stride)
        own = g.shifted(own, row // block_tokens * block_words)
        held = g.local_f32(n_held)
        for i in range(n_held):
            held[i] = g.float32(0)
        token = g.int32(row % block_tokens)
        add_estimate(held, own, token, words, grid_step, mean_words, mean_step, lane, here)
        unrotate(held, lane)
        if here:
            x = g.shifted(x, slot * x_slot_stride + head * x_head_stride)
            first = (g.int64(sources[batch_row]) + index) * head_dim
            for j in range(m):
                for i in range(0, n, 4):
                    at, place = j * n + i, g.int32(j * power + i * lanes + lane * 4)
                    a, b, c, d = g.load_f32x4(x, first + place)
                    if centred:
                        e, f, h, k = g.load_constant_f32x4(
                            means, slot * means_slot_stride + head * head_dim + place
                        )
                        a, b, c, d = a - e, b - f, c - h, d - k
                    a, b, c, d = a - held[at], b - held[at + 1], c - held[at + 2], d - held[at + 3]
                    g.store_f32x4(x, first + place, a, b, c, d)

    return CudaKernel(
        kernel,
        "f32* i64 i64 u32* i64 i64 u32* f32 u32* f32 f32* i64 i64* i32 i64* i64* i64* i64*",
        threads,
        opcodes=("LDG.E.128", "STG.E.128"),
        work=Work("row", 8 * head_dim + head_dim // selector.dim + 2, head_dim * 8),
    )

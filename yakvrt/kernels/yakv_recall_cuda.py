"""A CUDA kernel that makes exact rows of YAKV's indexed ones, from their codes (see yakv_recall_cpu).

A block of threads fetches 64 rows of codes as they lie, 16 bytes at a time, since they may rest in host
memory, and decodes them from shared memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .attend_fragments import number_ops
from .cuda_kernel import CudaKernel, Work
from .higgs_layout import BLOCK_TOKENS, ROW_FORMATS, SELECTORS, row_bytes
from .higgs_residual_cuda import make_add_estimate
from .higgs_rows import decode_rows_ref
from .rotate import make_rotate_registers, rotation, rotation_factors, rotation_lanes
from .yakv_attend_cuda import FORMATS


def recall_ref(
    formats: tuple[str, str],
    codes: np.ndarray,
    scales: np.ndarray,
    grids: tuple[np.ndarray, np.ndarray],
    estimates: np.ndarray,
    mean: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of rows of codes; estimate_ref's `estimates` are read of residuals only.

    Shapes: codes uint8 [n, bytes of a row], scales float16 [n, 2], estimates [n, D], mean [D] -> float64
    [n, D] each.
    """
    head_dim = estimates.shape[1]
    k_bytes, v_bytes = (ROW_FORMATS[name].n_bytes(head_dim) for name in formats)
    k = decode_rows_ref(formats[0], codes[:, :k_bytes], scales[:, 0], grids[0], rotated=True)
    if ROW_FORMATS[formats[0]].residual:
        k = k + estimates
    k = k @ rotation(head_dim).astype(np.float64) + (0 if mean is None else mean)
    v_codes = codes[:, k_bytes : k_bytes + v_bytes]
    return k, decode_rows_ref(formats[1], v_codes, scales[:, 1], grids[1], rotated=False)


def yakv_recall_cuda(
    g: Any, head_dim: int, kind: str, selector: str, k_format: str, v_format: str, centred: bool
) -> CudaKernel:
    """Indexed rows first .. last - 1 of a slot, of every KV head, as exact ones, `first` a multiple of 64.
    Row i becomes the one at place first_place + i % ring_len, ring_len a multiple of 64.

    Shapes, of the slot: k_out and v_out pairs of 16-bit numbers with rows of head_dim, heads out_head words
    apart; codes uint32, scales uint32 (float16 of K, then V), heads codes_head and scales_head words apart;
    blocks uint32, those of the selector, heads blocks_head apart; means float32 [Hk, D], read where
    `centred`. words to mean_step as in make_add_estimate; k_book and v_book: the grids' points, pairs of
    float16 (`halves` of GridTables).
    Grid: x, blocks of 64 rows; y, KV heads.
    Raises: ValueError for a size without a rotation, or formats without a kernel.
    """
    if (k_format, v_format) not in FORMATS:
        raise ValueError(
            f"rows of {k_format} and {v_format} have no CUDA kernel: use q4 or r3 for keys, q4 for values"
        )
    pack, *_ = number_ops(g, kind)
    threads, block_tokens = 256, BLOCK_TOKENS
    k_row, v_row = ROW_FORMATS[k_format], ROW_FORMATS[v_format]
    residual, pairs = k_row.residual, head_dim // 2
    row_words = row_bytes(head_dim, k_format, v_format) // 4
    row_loads, block_words = row_words // 4, SELECTORS[selector].block_bytes(head_dim) // 4
    n_loads, n_held_words = (
        block_tokens * row_loads,
        block_tokens * row_words + 1,
    )  # a code's word, and the next
    n_k_codes, n_v_codes = (1 << 2 * row_format.bits for row_format in (k_row, v_row))
    m, power = rotation_factors(head_dim)
    lanes = rotation_lanes(head_dim)
    n, n_held, at_once = power // lanes, head_dim // lanes, threads // lanes
    add_estimate = make_add_estimate(g, selector, head_dim)
    unrotate = make_rotate_registers(g, head_dim, True, False)

    def make_decode(bits: int, first_bit: int) -> Any:
        mask, code_bits = (1 << 2 * bits) - 1, 2 * bits

        @g.inline
        def decode(held, codes, book, scale, lane):  # type: ignore[no-untyped-def]
            for j in range(m):
                for i in range(0, n, 4):
                    at, bit = j * n + i, g.int32(first_bit + (j * power + i * lanes + lane * 4) * bits)
                    two = g.funnel_right(codes[bit >> 5], codes[(bit >> 5) + 1], g.uint32(bit & 31))
                    a, b = book[g.int32(two & mask)], book[g.int32(two >> code_bits & mask)]
                    held[at], held[at + 1] = g.low_f16(a) * scale, g.high_f16(a) * scale
                    held[at + 2], held[at + 3] = g.low_f16(b) * scale, g.high_f16(b) * scale

        return decode

    decode_key = make_decode(k_row.bits, 0)
    decode_value = make_decode(v_row.bits, 8 * k_row.n_bytes(head_dim))

    @g.inline
    def add_mean(held, mean, lane):  # type: ignore[no-untyped-def]
        for j in range(m):
            for i in range(0, n, 4):
                at = j * n + i
                a, b, c, d = g.load_constant_f32x4(mean, j * power + i * lanes + lane * 4)
                held[at], held[at + 1] = held[at] + a, held[at + 1] + b
                held[at + 2], held[at + 3] = held[at + 2] + c, held[at + 3] + d

    @g.inline
    def store_row(out, keys, values, lane, here):  # type: ignore[no-untyped-def]
        """Of two neighbouring lanes the first stores the keys of both, the second their values."""
        odd = lane & 1
        for j in range(m):
            for i in range(0, n, 4):
                at, place = j * n + i, g.int32(j * power + i * lanes + (lane - odd) * 4)
                k0, k1 = pack(keys[at], keys[at + 1]), pack(keys[at + 2], keys[at + 3])
                v0, v1 = pack(values[at], values[at + 1]), pack(values[at + 2], values[at + 3])
                a, b = g.shuffle_xor(k0 if odd else v0, 1), g.shuffle_xor(k1 if odd else v1, 1)
                w0, w1, w2, w3 = a if odd else k0, b if odd else k1, v0 if odd else a, v1 if odd else b
                if here:
                    g.store_u32x4(out, place // 2, w0, w1, w2, w3)

    def kernel(  # type: ignore[no-untyped-def]
        k_out, v_out, out_head, first_place, ring_len, codes, codes_head, scales, scales_head, k_book, v_book,
        blocks, blocks_head, words, grid_step, mean_words, mean_step, means, first, last,
    ):  # fmt: skip
        thread, head = g.thread(), g.block_y()
        row = g.int64(first) + g.block() * block_tokens
        count = g.int32(min(g.int64(block_tokens), last - row))
        held_codes, held_scales = g.shared_u32(n_held_words), g.shared_u32(block_tokens)
        k_points, v_points = g.shared_u32(n_k_codes), g.shared_u32(n_v_codes)
        codes = g.shifted(codes, head * codes_head + row * row_words)
        for begin in range(0, n_loads, threads):
            i = g.int32(begin + thread)
            if i < count * row_loads:
                a, b, c, d = g.load_constant_u32x4(codes, i * 4)
                g.store_u32x4(held_codes, i * 4, a, b, c, d)
        scales = g.shifted(scales, head * scales_head + row)
        if thread < count:
            held_scales[thread] = scales[thread]
        if thread < n_k_codes:
            k_points[thread] = k_book[thread]
        if thread < n_v_codes:
            v_points[thread] = v_book[thread]
        g.sync_threads()
        lane, own_row = g.int32(thread % lanes), g.int32(thread // lanes)
        block = g.shifted(blocks, head * blocks_head + row // block_tokens * block_words)
        mean = g.shifted(means, head * head_dim)
        out, place = v_out if lane & 1 else k_out, g.uint32(g.uint32(row) % g.uint32(ring_len))
        out = g.shifted(out, head * out_head + (first_place + g.int64(place)) * pairs)
        keys, values = g.local_f32(n_held), g.local_f32(n_held)
        for step in range(0, block_tokens, at_once):
            index = g.int32(step + own_row)
            here, own = index < count, g.shifted(held_codes, index * row_words)
            pair = held_scales[index]
            decode_key(keys, own, k_points, g.low_f16(pair), lane)
            if residual:
                add_estimate(keys, block, index, words, grid_step, mean_words, mean_step, lane, True)
            unrotate(keys, lane)
            if centred:
                add_mean(keys, mean, lane)
            decode_value(values, own, v_points, g.high_f16(pair), lane)
            unrotate(values, lane)
            store_row(g.shifted(out, index * pairs), keys, values, lane, here)

    return CudaKernel(
        kernel,
        "u32* u32* i64 i64 i64 u32* i64 u32* i64 u32* u32* u32* i64 u32* f32 u32* f32 f32* i64 i64",
        threads,
        opcodes=("LDG.E.128", "STS.128", "STG.E.128"),
        work=Work("row", row_words * 4 + 4 + 4 * head_dim, head_dim * 16),
    )

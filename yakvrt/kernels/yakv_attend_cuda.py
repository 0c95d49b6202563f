"""Attention of one new token to selected rows of 4-bit codes on a GPU, which never become rows: a code is
looked up where a fragment of the tensor cores' operands takes its two numbers.

A lookup is one byte permutation, which makes the address, and one load from shared memory. The codebook
lies there 32 times, once for every bank, so that the lanes of a warp never wait for each other. Scores are
products in the rotated domain, times the scale of the key; weights are multiplied by the scale of the value;
the sums are rotated back at the end.

A row of D numbers is D lookups, keys and values together. By these counts, not measured: an H200 (132
multiprocessors at 1.75 GHz, 4.8 TB/s) brings 0.157 rows of D = 128 a clock to a multiprocessor, 20 lookups,
and its shared memory answers 32: memory binds. A single codebook would answer 9, since the fullest of 32
banks gets 3.5 of 32 random lookups, and would bind itself.
"""

from __future__ import annotations

from typing import Any

from .attend_decode_cuda import LOG2_E
from .attend_fragments import (
    BLOCK_HEADS,
    LEAST,
    TILE,
    check_shape,
    make_add_scores,
    make_add_values,
    make_fold,
    make_join_warps,
    make_put_queries,
    make_share_heads,
    query_words,
)
from .cuda_kernel import CudaKernel, Work
from .higgs_layout import row_bytes
from .rotate import make_rotate_registers, rotation_factors, rotation_lanes

WARPS = 4
CODES = 256
BOOK_PITCH = 64  # words between codewords: a code is the second byte of an address


def yakv_attend_cuda(g: Any, head_dim: int, k_format: str, v_format: str, centred: bool) -> CudaKernel:
    """Partial `first + split` (see attend_decode_cuda) of every query head: counts[row, kv head] rows at
    `places`, in `n_splits` shares in multiples of 64.

    codes: rows of higgs_layout in words, codes_slot and codes_head words apart; scales: float16 of K, then V,
    in a word for each row; book: the grid's points, float16 pairs [256] (`halves` of GridTables); means: the
    mean keys, read where `centred`. q is float32 in the original domain, as the sums are.
    Shapes: places int32 [B, Hk, places_stride], counts int64 [B, Hk]; sums, stats as in attend_decode_cuda.
    Grid: x, n_kv_heads * n_splits * head_blocks(group); y, rows.

    Raises: ValueError for shapes and row formats without a kernel.
    """
    check_shape(head_dim, "f16")
    if (k_format, v_format) != ("q4", "q4"):
        raise ValueError(
            f"rows of {k_format} and {v_format} have no CUDA attention: use q4 for keys and values"
        )
    threads, step, tile = WARPS * 32, WARPS * TILE, TILE
    n_steps, n_sums = head_dim // 16, head_dim // 4
    key_words, value_words, row_words = head_dim // 32, head_dim // 64, row_bytes(head_dim, "q4", "q4") // 4
    values_at, n_keys, n_values = head_dim // 8, key_words * 2, value_words * 4
    n_query_words, n_held, n_stats = query_words(head_dim), BLOCK_HEADS * head_dim, WARPS * 16
    book_pitch, n_codes, n_offsets = BOOK_PITCH, CODES, 8
    least, log2_e = LEAST, LOG2_E
    # rotations of rows by neighbouring lanes
    m, power = rotation_factors(head_dim)
    lanes = rotation_lanes(head_dim)
    lane_bits = lanes.bit_length() - 1
    n, n_turned, rows_at_once = power // lanes, head_dim // lanes, threads // lanes
    n_turns = -(-BLOCK_HEADS // rows_at_once)
    rotate = make_rotate_registers(g, head_dim, False, False)
    unrotate = make_rotate_registers(g, head_dim, True, False)
    put_queries = make_put_queries(
        g, head_dim, "f16", WARPS, g.inline(lambda step, c: c * (head_dim // 4) + step * 4)
    )
    add_scores, (reset, fold) = make_add_scores(g, "f16"), make_fold(g, head_dim)
    share_heads = make_share_heads(g)
    round_weights, add_values = make_add_values(g, "f16")
    join_warps = make_join_warps(g, head_dim, WARPS, head_dim // 8)

    @g.inline
    def load_words(target, at, source, i, n_words):  # type: ignore[no-untyped-def]
        for j in range(0, n_words // 4 * 4, 4):
            a, b, c, d = g.load_constant_u32x4(source, i + j)
            target[at + j], target[at + j + 1], target[at + j + 2], target[at + j + 3] = a, b, c, d

    @g.inline
    def load_pairs(target, at, source, i, n_words):  # type: ignore[no-untyped-def]
        for j in range(0, n_words, 2):
            target[at + j], target[at + j + 1] = g.load_constant_u32x2(source, i + j)

    @g.inline
    def load_singles(target, at, source, i, n_words):  # type: ignore[no-untyped-def]
        for j in range(n_words):
            target[at + j] = source[i + j]

    def widest(n_words: int) -> Any:
        return load_words if n_words % 4 == 0 else load_pairs if n_words % 2 == 0 else load_singles

    load_key, load_value = widest(key_words), widest(value_words)

    @g.inline
    def load_keys(keys, row_scales, place, codes, scales, lane):  # type: ignore[no-untyped-def]
        """Codes and scales of keys r and r + 8; lane i holds the place of row i % 16."""
        for half in range(2):
            own = g.int64(g.shuffle_from(place, (lane >> 2) + 8 * half))
            load_key(keys, half * key_words, codes, own * row_words + (lane & 3) * key_words, key_words)
            row_scales[half] = scales[own]

    @g.inline
    def load_values(values, place, codes, lane):  # type: ignore[no-untyped-def]
        for i in range(4):
            own = g.int64(g.shuffle_from(place, (lane & 3) * 2 + i // 2 * 8 + i % 2))
            at = own * row_words + values_at + (lane >> 2) * value_words
            load_value(values, i * value_words, codes, at, value_words)

    @g.inline
    def codeword(book, lane_bytes, codes, i):  # type: ignore[no-untyped-def]
        """Two numbers for code i % 4 of a word."""
        return g.load_u32_at(book, g.permute_bytes(codes, lane_bytes, g.uint32(0x5504 + (i % 4 << 4))))

    @g.inline
    def score_tile(s, keys, row_scales, offset_even, offset_odd, fragments, book, lane):  # type: ignore[no-untyped-def]
        for i in range(4):
            s[i] = g.float32(0)
        own = g.uint32(lane * 4)
        for i in range(n_steps):
            j = i // 2
            a0, a2 = codeword(book, own, keys[j], 2 * i), codeword(book, own, keys[j], 2 * i + 1)
            a1 = codeword(book, own, keys[key_words + j], 2 * i)
            a3 = codeword(book, own, keys[key_words + j], 2 * i + 1)
            add_scores(s, fragments, i, lane, a0, a1, a2, a3)
        upper, lower = g.low_f16(row_scales[0]), g.low_f16(row_scales[1])
        s[0], s[1] = s[0] * upper + offset_even, s[1] * upper + offset_odd
        s[2], s[3] = s[2] * lower + offset_even, s[3] * lower + offset_odd

    @g.inline
    def value_tile(held, s, values, row_scales, book, lane):  # type: ignore[no-untyped-def]
        upper, lower = g.high_f16(row_scales[0]), g.high_f16(row_scales[1])
        s[0], s[1], s[2], s[3] = s[0] * upper, s[1] * upper, s[2] * lower, s[3] * lower
        w = g.local_u32(4)
        round_weights(w, s)
        own = g.uint32(lane * 4)
        for i in range(n_steps):
            j = i // 4
            a, b = codeword(book, own, values[j], i), codeword(book, own, values[value_words + j], i)
            c = codeword(book, own, values[2 * value_words + j], i)
            d = codeword(book, own, values[3 * value_words + j], i)
            add_values(held, i, w, a, b, c, d)

    @g.inline
    def fill_book(book, points, thread):  # type: ignore[no-untyped-def]
        lane = thread & 31
        for first in range(thread - lane, n_codes, threads):
            word = points[first + lane]
            for i in range(32):
                book[(first + i) * book_pitch + lane] = g.shuffle_from(word, i)

    @g.inline
    def rotate_queries(turned, offsets, q, mean, n_own, thread):  # type: ignore[no-untyped-def]
        """Heads in the rotated domain, and what the mean key adds to their scores."""
        lane = g.int32(g.uint32(thread) % g.uint32(lanes))
        for turn in range(n_turns):
            row = g.int32(turn * rows_at_once + g.uint32(thread) // g.uint32(lanes))
            held, offset = g.local_f32(n_turned), g.float32(0)
            for j in range(m):
                for i in range(0, n, 4):
                    at, dim = j * n + i, j * power + i * lanes + lane * 4
                    a, b, c, d = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
                    if row < n_own:
                        a, b, c, d = g.load_f32x4(q, row * head_dim + dim)
                        if centred:
                            x, y, z, w = g.load_f32x4(mean, dim)
                            offset += (a * x + b * y) + (c * z + d * w)
                    held[at], held[at + 1], held[at + 2], held[at + 3] = a, b, c, d
            if centred:
                for i in range(lane_bits):
                    offset += g.shuffle_xor(offset, 1 << i)
            rotate(held, lane)
            if row < n_own:
                for j in range(m):
                    for i in range(0, n, 4):
                        at, dim = j * n + i, j * power + i * lanes + lane * 4
                        g.store_f32x4(
                            turned, row * head_dim + dim, held[at], held[at + 1], held[at + 2], held[at + 3]
                        )
            if row < n_offsets and lane == 0:
                offsets[row] = offset

    @g.inline
    def unrotate_sums(sums, place, pitch, turned, n_own, thread):  # type: ignore[no-untyped-def]
        lane = g.int32(g.uint32(thread) % g.uint32(lanes))
        for turn in range(n_turns):
            row = g.int32(turn * rows_at_once + g.uint32(thread) // g.uint32(lanes))
            held = g.local_f32(n_turned)
            for j in range(m):
                for i in range(0, n, 4):
                    at, dim = j * n + i, j * power + i * lanes + lane * 4
                    a, b, c, d = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
                    if row < n_own:
                        a, b, c, d = g.load_f32x4(turned, row * head_dim + dim)
                    held[at], held[at + 1], held[at + 2], held[at + 3] = a, b, c, d
            unrotate(held, lane)
            if row < n_own:
                for j in range(m):
                    for i in range(0, n, 4):
                        at, dim = j * n + i, j * power + i * lanes + lane * 4
                        target = place + g.int64(row) * pitch + dim
                        g.store_f32x4(sums, target, held[at], held[at + 1], held[at + 2], held[at + 3])

    def kernel(  # type: ignore[no-untyped-def]
        sums, stats, first, n_partials, n_splits, q, q_stride, codes, codes_slot, codes_head, scales,
        scales_slot, scales_head, book, means, means_slot, means_head, places, places_stride, counts, slots,
        n_rows, n_heads, group, scale,
    ):  # fmt: skip
        row, thread = g.block_y(), g.thread()
        if row < n_rows[0]:
            lane, warp = thread & 31, thread >> 5
            head, split, chunk_head, n_own = share_heads(g.block(), n_splits, group)
            count = g.int32(counts[row * n_heads + head])
            share = g.int32(g.uint32(count + n_splits * step - 1) // g.uint32(n_splits * step) * step)
            begin, end = g.int32(split * share), g.int32(min((split + 1) * share, count))
            first_head = g.int32(head * group + chunk_head)
            unit = row * n_heads * group + first_head
            partial = first + split
            if begin >= end:
                if thread < n_own:
                    at = ((unit + thread) * n_partials + partial) * 2
                    stats[at], stats[at + 1] = g.float32(least), g.float32(0)
            else:
                slot, table = slots[row], g.dynamic_u32(0)
                codes = g.shifted(codes, slot * codes_slot + head * codes_head)
                scales = g.shifted(scales, slot * scales_slot + head * scales_head)
                own_places = g.shifted(places, (row * n_heads + head) * places_stride)
                turned, offsets = g.shared_f32(n_held), g.shared_f32(n_offsets)
                mean = g.shifted(means, slot * means_slot + head * means_head)
                own = g.shifted(q, row * q_stride + first_head * head_dim)
                rotate_queries(turned, offsets, own, mean, n_own, thread)
                fill_book(table, book, thread)
                g.sync_threads()
                fragments, factor = g.shared_u32(n_query_words), scale * g.float32(log2_e)
                put_queries(fragments, turned, n_own, factor, thread)
                even, odd = offsets[(lane & 3) * 2] * factor, offsets[(lane & 3) * 2 + 1] * factor
                held, state = g.local_f32(n_sums), g.local_f32(4)
                reset(held, state)
                g.sync_threads()
                last = g.int32(end - 1)
                keys, values = g.local_u32(n_keys), g.local_u32(n_values)
                row_scales, next_scales, s = g.local_u32(2), g.local_u32(2), g.local_f32(4)
                place = own_places[min(begin + warp * tile + (lane & 15), last)]
                load_keys(keys, next_scales, place, codes, scales, lane)
                load_values(values, place, codes, lane)
                for tile_at in range(begin + warp * tile, end, step):
                    position = g.int32(tile_at)
                    row_scales[0], row_scales[1] = next_scales[0], next_scales[1]
                    place = own_places[min(g.int32(position + step + (lane & 15)), last)]
                    g.sync_warp()  # or the compiler would keep the fragments of queries in registers
                    score_tile(s, keys, row_scales, even, odd, fragments, table, lane)
                    load_keys(keys, next_scales, place, codes, scales, lane)  # of the next tile
                    fold(s, g.int32(end - position), lane, held, state)
                    value_tile(held, s, values, row_scales, table, lane)
                    load_values(values, place, codes, lane)
                shared_stats = g.shared_f32(n_stats)
                join_warps(turned, head_dim, shared_stats, n_own, held, state, thread)
                target = (unit * n_partials + partial) * head_dim
                unrotate_sums(sums, target, n_partials * head_dim, turned, n_own, thread)
                if thread < n_own:
                    at = ((unit + thread) * n_partials + partial) * 2
                    stats[at], stats[at + 1] = shared_stats[thread * 2], shared_stats[thread * 2 + 1]

    return CudaKernel(
        kernel,
        "f32* f32* i32 i32 i32 f32* i32 u32* i64 i64 u32* i64 i64 u32* f32* i64 i64 i32* i32 i64* i64*"
        " i64* i32 i32 f32",
        threads,
        CODES * BOOK_PITCH * 4,
        opcodes=("HMMA.16816.F32", "LDS", "LDG.E.128", "STG.E.128"),
        work=Work("selected row of a kv head with 8 query heads", head_dim + 8, 32 * head_dim),
    )

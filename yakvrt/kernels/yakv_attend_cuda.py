"""Attention of one new token to selected rows of codes on a GPU, which never become rows: a code is looked up
where a fragment of the tensor cores' operands takes its two numbers (codeword_fragments.py).

Scores are products in the rotated domain, times the scale of the key. To those of r3, which is what selector
codes leave of a key, the logit is added that scoring found, to others what the mean key makes. Weights are
multiplied by the scale of the value; the sums are rotated back at the end.

A row of D numbers is D lookups, keys and values together. By these counts, not measured: an H200 (132
multiprocessors at 1.75 GHz, 4.8 TB/s) brings 0.157 rows of q4 at D = 128 a clock to a multiprocessor, 20
lookups, and its shared memory answers 32: memory binds. A single codebook would answer 9, since the fullest
of 32 banks gets 3.5 of 32 random lookups, and would bind itself. Of r3 it brings 0.18 rows, 23 lookups, if
logits come from the L2 cache; else 0.06, since each of 8 heads' lies in a sector of its own. Instructions
take as long: 16 rows of D = 128 are 441 of a warp, 492 of r3 (counted, sm_90a), so four schedulers pass 0.145
rows a clock, 0.130 of r3.
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
from .codeword_fragments import BOOK_PITCH, make_codewords, make_fill_book, make_load_words
from .cuda_kernel import CudaKernel, Work
from .higgs_layout import ROW_FORMATS, row_bytes
from .rotate import make_rotate_registers, rotation_factors, rotation_lanes

FORMATS = (("r3", "q4"), ("q4", "q4"))  # of K and V
VALUE_CODES, RESIDUAL_CODES = 256, 64


def _warps(head_dim: int, residual: bool) -> int:
    """Of a block. Three blocks with one codebook fit a multiprocessor of an H200, but two with two codebooks:
    they are larger, if registers allow it.
    """
    return 6 if residual and head_dim <= 128 else 4


def yakv_attend_cuda(g: Any, head_dim: int, k_format: str, v_format: str, centred: bool) -> CudaKernel:
    """Partial `first + split` (see attend_decode_cuda) of every query head: counts[row, kv head] rows at
    `places`, in `n_splits` shares in multiples of 16 a warp.

    codes: rows of higgs_layout in words, codes_slot and codes_head words apart; scales: float16 of K, then V,
    in a word for each row; books: the grids' points, float16 pairs [256], of r3 [64] (`halves` of
    GridTables). q is float32 in the original domain, as the sums are. means: the mean keys, read where
    `centred`. Of r3 instead logits of higgs_score_cuda, float32 [B, Hk, G, logits_stride], of rows `ids`.
    Shapes: places, ids int32 [B, Hk, places_stride], counts int64 [B, Hk]; sums, stats as in
    attend_decode_cuda.
    Grid: x, n_kv_heads * n_splits * head_blocks(group); y, rows.

    Raises: ValueError for shapes and row formats without a kernel.
    """
    check_shape(head_dim, "f16")
    if (k_format, v_format) not in FORMATS:
        raise ValueError(
            f"rows of {k_format} and {v_format} have no CUDA attention: use q4 or r3 for keys, q4 for values"
        )
    key_format = ROW_FORMATS[k_format]
    residual, with_mean = key_format.residual, centred and not key_format.residual
    warps = _warps(head_dim, residual)
    threads, step, tile = warps * 32, warps * TILE, TILE
    n_steps, n_sums = head_dim // 16, head_dim // 4
    # a lane's quarter of a key, which may begin in the middle of a word
    key_bits = key_format.n_bytes(head_dim) * 2
    key_words, split_words = -(-key_bits // 32), key_bits % 32 > 0
    value_words, row_words = head_dim // 64, row_bytes(head_dim, k_format, v_format) // 4
    values_at, n_keys, n_values = key_format.n_bytes(head_dim) // 4, key_words * 2, value_words * 4
    n_query_words, n_held, n_stats = query_words(head_dim), BLOCK_HEADS * head_dim, warps * 16
    n_offsets, least, log2_e = 8, LEAST, LOG2_E
    # the book of keys comes first: an offset that shares no bit with an address would take an instruction
    value_book_at = RESIDUAL_CODES * BOOK_PITCH * 4 if residual else 0
    # rotations of rows by neighbouring lanes
    m, power = rotation_factors(head_dim)
    lanes = rotation_lanes(head_dim)
    lane_bits = lanes.bit_length() - 1
    n, n_turned, rows_at_once = power // lanes, head_dim // lanes, threads // lanes
    n_turns = -(-BLOCK_HEADS // rows_at_once)
    rotate = make_rotate_registers(g, head_dim, False, False)
    unrotate = make_rotate_registers(g, head_dim, True, False)
    put_queries = make_put_queries(
        g, head_dim, "f16", warps, g.inline(lambda step, c: c * (head_dim // 4) + step * 4)
    )
    add_scores, (reset, fold) = make_add_scores(g, "f16"), make_fold(g, head_dim)
    share_heads = make_share_heads(g)
    round_weights, add_values = make_add_values(g, "f16")
    join_warps = make_join_warps(g, head_dim, warps, head_dim // 8)
    load_key = make_load_words(g, key_words, row_words, key_bits // 32, split_words)
    load_value = make_load_words(g, value_words, row_words, values_at)
    fill_keys, fill_values = (make_fill_book(g, n, threads) for n in (RESIDUAL_CODES, VALUE_CODES))
    codeword, four_of_bytes, four_of_sixes = make_codewords(g)
    four_codewords, n_fours, last_key = four_of_sixes if residual else four_of_bytes, n_steps // 2, n_keys - 1

    @g.inline
    def load_keys(keys, row_scales, place, codes, scales, lane):  # type: ignore[no-untyped-def]
        """Codes and scales of keys r and r + 8; lane i holds the place of row i % 16."""
        for half in range(2):
            own = g.int64(g.shuffle_from(place, (lane >> 2) + 8 * half))
            load_key(keys, half * key_words, codes, own * row_words + ((lane & 3) * key_bits >> 5))
            row_scales[half] = scales[own]

    @g.inline
    def load_values(values, place, codes, lane):  # type: ignore[no-untyped-def]
        for i in range(4):
            own = g.int64(g.shuffle_from(place, (lane & 3) * 2 + i // 2 * 8 + i % 2))
            at = own * row_words + values_at + (lane >> 2) * value_words
            load_value(values, i * value_words, codes, at)

    @g.inline
    def load_logits(added, own_id, even, odd, lane):  # type: ignore[no-untyped-def]
        for half in range(2):
            own = g.int64(g.shuffle_from(own_id, (lane >> 2) + 8 * half))
            added[2 * half], added[2 * half + 1] = even[own], odd[own]

    @g.inline
    def begin_with_words(keys, lane):  # type: ignore[no-untyped-def]
        bits = g.uint32((lane & 3) * key_bits & 31)
        for i in range(n_keys):
            following = keys[i + 1] if i % key_words + 1 < key_words else g.uint32(0)
            keys[i] = g.funnel_right(keys[i], following, bits)

    @g.inline
    def score_tile(s, keys, row_scales, added, factor, fragments, book, lane):  # type: ignore[no-untyped-def]
        """Adds factor * added."""
        for i in range(4):
            s[i] = g.float32(0)
        book = g.shifted(book, lane)
        if split_words:
            begin_with_words(keys, lane)
        for i in range(n_fours):
            a, b, c, d = four_codewords(book, keys, 0, last_key, i)
            x, y, z, w = four_codewords(book, keys, key_words, last_key, i)
            add_scores(s, fragments, 2 * i, lane, a, x, b, y)
            add_scores(s, fragments, 2 * i + 1, lane, c, z, d, w)
        upper, lower = g.low_f16(row_scales[0]), g.low_f16(row_scales[1])
        s[0], s[1] = s[0] * upper + added[0] * factor, s[1] * upper + added[1] * factor
        s[2], s[3] = s[2] * lower + added[2] * factor, s[3] * lower + added[3] * factor

    @g.inline
    def value_tile(held, s, values, row_scales, book, lane):  # type: ignore[no-untyped-def]
        upper, lower = g.high_f16(row_scales[0]), g.high_f16(row_scales[1])
        s[0], s[1], s[2], s[3] = s[0] * upper, s[1] * upper, s[2] * lower, s[3] * lower
        w = g.local_u32(4)
        round_weights(w, s)
        book = g.shifted(book, lane)
        for i in range(n_steps):
            j, byte = i // 4, i % 4
            a, b = codeword(book, values[j], byte), codeword(book, values[value_words + j], byte)
            c = codeword(book, values[2 * value_words + j], byte)
            d = codeword(book, values[3 * value_words + j], byte)
            add_values(held, i, w, a, b, c, d)

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
                        if with_mean:
                            x, y, z, w = g.load_f32x4(mean, dim)
                            offset += (a * x + b * y) + (c * z + d * w)
                    held[at], held[at + 1], held[at + 2], held[at + 3] = a, b, c, d
            if with_mean:
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
        scales_slot, scales_head, key_book, value_book, means, means_slot, means_head, logits, logits_stride,
        ids, places, places_stride, counts, slots, n_rows, n_heads, group, scale,
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
                slot, key_table, value_table = slots[row], g.dynamic_u32(0), g.dynamic_u32(value_book_at)
                codes = g.shifted(codes, slot * codes_slot + head * codes_head)
                scales = g.shifted(scales, slot * scales_slot + head * scales_head)
                segment = g.int64(row * n_heads + head)
                own_places = g.shifted(places, segment * places_stride)
                own_ids = g.shifted(ids, segment * places_stride)
                turned, offsets = g.shared_f32(n_held), g.shared_f32(n_offsets)
                mean = g.shifted(means, slot * means_slot + head * means_head)
                own = g.shifted(q, row * q_stride + first_head * head_dim)
                rotate_queries(turned, offsets, own, mean, n_own, thread)
                fill_values(value_table, value_book, thread)
                if residual:
                    fill_keys(key_table, key_book, thread)
                g.sync_threads()
                fragments, factor = g.shared_u32(n_query_words), scale * g.float32(log2_e)
                put_queries(fragments, turned, n_own, factor, thread)
                added, added_factor = g.local_f32(4), g.float32(log2_e) if residual else factor
                query = segment * group + chunk_head
                even = g.shifted(logits, (query + min((lane & 3) * 2, n_own - 1)) * logits_stride)
                odd = g.shifted(logits, (query + min((lane & 3) * 2 + 1, n_own - 1)) * logits_stride)
                for i in range(4):
                    added[i] = offsets[(lane & 3) * 2 + i % 2]
                held, state = g.local_f32(n_sums), g.local_f32(4)
                reset(held, state)
                g.sync_threads()
                last = g.int32(end - 1)
                keys, values = g.local_u32(n_keys), g.local_u32(n_values)
                row_scales, next_scales, s = g.local_u32(2), g.local_u32(2), g.local_f32(4)
                at = min(begin + warp * tile + (lane & 15), last)
                place = own_places[at]
                if residual:
                    load_logits(added, own_ids[at], even, odd, lane)
                load_keys(keys, next_scales, place, codes, scales, lane)
                load_values(values, place, codes, lane)
                for tile_at in range(begin + warp * tile, end, step):
                    position = g.int32(tile_at)
                    row_scales[0], row_scales[1] = next_scales[0], next_scales[1]
                    at = min(g.int32(position + step + (lane & 15)), last)
                    place, own_id = own_places[at], own_ids[at] if residual else 0
                    g.sync_warp()  # or the compiler would keep the fragments of queries in registers
                    score_tile(s, keys, row_scales, added, added_factor, fragments, key_table, lane)
                    load_keys(keys, next_scales, place, codes, scales, lane)  # of the next tile
                    if residual:
                        load_logits(added, own_id, even, odd, lane)
                    fold(s, g.int32(end - position), lane, held, state)
                    value_tile(held, s, values, row_scales, value_table, lane)
                    load_values(values, place, codes, lane)
                shared_stats = g.shared_f32(n_stats)
                join_warps(turned, head_dim, shared_stats, n_own, held, state, thread)
                target = (unit * n_partials + partial) * head_dim
                unrotate_sums(sums, target, n_partials * head_dim, turned, n_own, thread)
                if thread < n_own:
                    at = ((unit + thread) * n_partials + partial) * 2
                    stats[at], stats[at + 1] = shared_stats[thread * 2], shared_stats[thread * 2 + 1]

    moved_bytes = row_words * 4 + 8 + (4 + 4 * BLOCK_HEADS if residual else 0)
    return CudaKernel(
        kernel,
        "f32* f32* i32 i32 i32 f32* i32 u32* i64 i64 u32* i64 i64 u32* u32* f32* i64 i64 f32* i32"
        " i32* i32* i32 i64* i64* i64* i32 i32 f32",
        threads,
        value_book_at + VALUE_CODES * BOOK_PITCH * 4,
        opcodes=("HMMA.16816.F32", "LDS", "LDG.E.128", "STG.E.128"),
        work=Work("selected row of a kv head with 8 query heads", moved_bytes, 32 * head_dim),
    )

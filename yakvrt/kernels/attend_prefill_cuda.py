"""Causal attention of a prompt's tokens on a GPU: tiles on tensor cores, online softmax.

A block takes 128 query rows: the heads of a group, of neighbouring tokens, share every tile of keys and
values. Tiles arrive by asynchronous copies while the tile before is computed with. Queries and weights are
rounded to the 16-bit format of the cache.

Source: FlashAttention-2, Dao, arXiv 2307.08691.
"""

from __future__ import annotations

from typing import Any

from .attend_decode_cuda import LOG2_E
from .attend_fragments import LEAST, check_shape, number_ops
from .cuda_kernel import CudaKernel, Work

WARPS = 8
ROWS = 16 * WARPS
HELD_QUERIES = 128  # up to this head dimension queries stay in registers


def prefill_tokens_cuda(group: int) -> int:
    """Tokens whose heads of one group a block takes."""
    return ROWS // group


def tile_positions(head_dim: int) -> int:
    """Positions of a tile of keys or values."""
    return 64 if head_dim <= HELD_QUERIES else 32


def attend_prefill_cuda(g: Any, head_dim: int, kind: str) -> CudaKernel:
    """Tokens n_rows of slot slots[0] from positions[0] on, whose rows were appended before, attend to all of
    the slot up to themselves.

    Strides count numbers; those of the caches are multiples of 8, the others of 4. `scale` is 1 / sqrt(D).
    Grid: x, blocks of prefill_tokens_cuda(group) tokens; y, kv heads. A group holds up to 128 heads.

    Raises: ValueError for shapes without a kernel.
    """
    check_shape(head_dim, kind)
    pack, _, _, mma = number_ops(g, kind)
    threads, rows, n_positions = WARPS * 32, ROWS, tile_positions(head_dim)
    n_steps, n_tiles, n_sums = head_dim // 16, n_positions // 8, head_dim // 2
    n_weights, n_query_words = n_tiles * 4, n_steps * 4
    n_dim_tiles = head_dim // 8
    pitch = head_dim + 8  # rows of shared memory start 4 banks apart: ldmatrix meets no conflict
    pieces, n_tile = head_dim // 8, n_positions * pitch
    held_queries = head_dim <= HELD_QUERIES
    # queries held in registers pass through the second pair of tiles
    queries_at = 2 * n_tile if held_queries else 4 * n_tile
    shared_bytes = (4 * n_tile if held_queries else 4 * n_tile + ROWS * pitch) * 2
    least, log2_e, n_copies = LEAST, LOG2_E, n_positions * pieces // threads
    n_query_pieces, row_words = ROWS * pieces // threads, head_dim // 2

    @g.inline
    def place_of(piece):  # type: ignore[no-untyped-def]
        """Row and column of 8 numbers."""
        row = g.uint32(piece // g.uint32(pieces))
        return g.int32(row), g.int32(g.uint32(piece - row * g.uint32(pieces)) * 8)

    @g.inline
    def copy_tile(memory, at, rows_, first, end, thread):  # type: ignore[no-untyped-def]
        """Rows first... of a cache; zero from `end` on."""
        own = g.shifted(rows_, g.int64(first) * row_words)
        left = g.int32(end - first)
        for i in range(n_copies):
            row, column = place_of(g.uint32(i * threads + thread))
            place = g.uint32(row * row_words + (column >> 1))
            g.copy_async_or_zero(memory, g.int32(at + row * pitch + column), own, place, row < left)

    @g.inline
    def put_queries(memory, q, q_stride, first, n_tokens, head, group, n_used, scale, thread):  # type: ignore[no-untyped-def]
        for i in range(n_query_pieces):
            row, column = place_of(g.uint32(i * threads + thread))
            token = first + g.int32(g.uint32(row) // g.uint32(group))
            a, b, c, d = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
            e, f, h, j = g.float32(0), g.float32(0), g.float32(0), g.float32(0)
            if token < n_tokens and row < n_used:
                own = head * group + g.int32(g.uint32(row) % g.uint32(group))
                place = g.int64(token) * q_stride + own * head_dim + column
                a, b, c, d = g.load_f32x4(q, place)
                e, f, h, j = g.load_f32x4(q, place + 4)
            w0, w1 = pack(a * scale, b * scale), pack(c * scale, d * scale)
            w2, w3 = pack(e * scale, f * scale), pack(h * scale, j * scale)
            g.store_u32x4(memory, queries_at + row * pitch + column, w0, w1, w2, w3)

    @g.inline
    def quad_max(x):  # type: ignore[no-untyped-def]
        x = max(x, g.shuffle_xor(x, 1))
        return max(x, g.shuffle_xor(x, 2))

    @g.inline
    def weigh(s, i, state, at):  # type: ignore[no-untyped-def]
        """Scores of one row become weights; what earlier sums are multiplied by."""
        largest = max(s[i], s[i + 1])
        for j in range(4, n_weights, 4):
            largest = max(largest, max(s[i + j], s[i + j + 1]))
        old = state[at]
        new = max(old, quad_max(largest))
        total = g.float32(0)
        for j in range(0, n_weights, 4):
            s[i + j], s[i + j + 1] = g.exp2(s[i + j] - new), g.exp2(s[i + j + 1] - new)
            total += s[i + j] + s[i + j + 1]
        shrink = g.exp2(old - new)
        state[at], state[at + 1] = new, state[at + 1] * shrink + total
        return shrink

    def kernel(  # type: ignore[no-untyped-def]
        out,
        out_stride,
        q,
        q_stride,
        k_cache,
        v_cache,
        slot_stride,
        head_stride,
        slots,
        positions,
        n_rows,
        group,
        scale,
    ):
        n_tokens, tokens = g.int32(n_rows[0]), g.int32(g.uint32(rows) // g.uint32(group))
        n_used = g.int32(tokens * group)
        # the longest histories first
        first = g.int32((g.uint32(n_tokens + tokens - 1) // g.uint32(tokens) - 1 - g.block()) * tokens)
        if first >= 0:
            thread, lane, warp, head = g.thread(), g.thread() & 31, g.thread() >> 5, g.block_y()
            start = g.int32(positions[0])
            end = g.int32(start + min(first + tokens, n_tokens))
            base = (slots[0] * slot_stride + head * head_stride) // 2
            k, v = g.shifted(k_cache, base), g.shifted(v_cache, base)
            memory = g.dynamic_u16(0)
            copy_tile(memory, 0, k, 0, end, thread)
            copy_tile(memory, n_tile, v, 0, end, thread)
            g.copy_async_commit()
            factor = scale * g.float32(log2_e)
            put_queries(memory, q, q_stride, first, n_tokens, head, group, n_used, factor, thread)
            g.sync_threads()
            words = g.local_u32(n_query_words)
            own_queries = queries_at + (warp * 16 + (lane & 15)) * pitch + (lane >> 4) * 8
            if held_queries:
                for i in range(n_steps):
                    w0, w1, w2, w3 = g.load_matrix_x4(memory, own_queries + i * 16)
                    words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3] = w0, w1, w2, w3
                g.sync_threads()
            sums, state = g.local_f32(n_sums), g.local_f32(4)
            for i in range(n_sums):
                sums[i] = g.float32(0)
            for i in (0, 2):
                state[i], state[i + 1] = g.float32(least), g.float32(0)
            row = g.int32(warp * 16 + (lane >> 2))
            token = first + g.int32(g.uint32(row) // g.uint32(group))
            token_below = first + g.int32(g.uint32(row + 8) // g.uint32(group))
            key_place = ((lane & 7) + (lane >> 4) * 8) * pitch + (lane >> 3 & 1) * 8
            value_place = (lane & 15) * pitch + (lane >> 4) * 8
            for tile_at in range(0, end, n_positions):
                at = g.int32(tile_at)
                stage = g.int32(g.uint32(at) // g.uint32(n_positions) & g.uint32(1))
                if at + n_positions < end:
                    other = (1 - stage) * (2 * n_tile)
                    copy_tile(memory, other, k, at + n_positions, end, thread)
                    copy_tile(memory, other + n_tile, v, at + n_positions, end, thread)
                g.copy_async_commit()
                g.copy_async_wait(1)
                g.sync_threads()
                s = g.local_f32(n_weights)
                for i in range(n_weights):
                    s[i] = g.float32(0)
                keys = stage * (2 * n_tile) + key_place
                for i in range(n_steps):
                    if held_queries:
                        a0, a1, a2, a3 = words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]
                    else:
                        a0, a1, a2, a3 = g.load_matrix_x4(memory, own_queries + i * 16)
                    for j in range(0, n_tiles, 2):
                        b0, b1, b2, b3 = g.load_matrix_x4(memory, keys + j * 8 * pitch + i * 16)
                        m = j * 4
                        s[m], s[m + 1], s[m + 2], s[m + 3] = mma(
                            a0, a1, a2, a3, b0, b1, s[m], s[m + 1], s[m + 2], s[m + 3]
                        )
                        s[m + 4], s[m + 5], s[m + 6], s[m + 7] = mma(
                            a0, a1, a2, a3, b2, b3, s[m + 4], s[m + 5], s[m + 6], s[m + 7]
                        )
                if at + n_positions > start + first + 1:
                    last = g.int32(start + token - at - (lane & 3) * 2)
                    last_below = g.int32(start + token_below - at - (lane & 3) * 2)
                    for j in range(n_tiles):
                        for e in range(2):
                            if j * 8 + e > last:
                                s[j * 4 + e] = g.float32(least)
                            if j * 8 + e > last_below:
                                s[j * 4 + 2 + e] = g.float32(least)
                shrink, below = weigh(s, 0, state, 0), weigh(s, 2, state, 2)
                if g.ballot(g.uint32(min(shrink, below) < g.float32(1))):
                    for i in range(0, n_sums, 4):
                        sums[i], sums[i + 1] = sums[i] * shrink, sums[i + 1] * shrink
                        sums[i + 2], sums[i + 3] = sums[i + 2] * below, sums[i + 3] * below
                values = stage * (2 * n_tile) + n_tile + value_place
                for i in range(0, n_tiles, 2):
                    m = i * 4
                    a0, a1 = pack(s[m], s[m + 1]), pack(s[m + 2], s[m + 3])
                    a2, a3 = pack(s[m + 4], s[m + 5]), pack(s[m + 6], s[m + 7])
                    for j in range(0, n_dim_tiles, 2):
                        b0, b1, b2, b3 = g.load_matrix_x4_transposed(memory, values + i * 8 * pitch + j * 8)
                        m = j * 4
                        sums[m], sums[m + 1], sums[m + 2], sums[m + 3] = mma(
                            a0, a1, a2, a3, b0, b1, sums[m], sums[m + 1], sums[m + 2], sums[m + 3]
                        )
                        sums[m + 4], sums[m + 5], sums[m + 6], sums[m + 7] = mma(
                            a0, a1, a2, a3, b2, b3, sums[m + 4], sums[m + 5], sums[m + 6], sums[m + 7]
                        )
                g.sync_threads()
            for i in (1, 3):
                state[i] += g.shuffle_xor(state[i], 1)
                state[i] += g.shuffle_xor(state[i], 2)
            for i in (0, 1):
                own_row, own_token = row + 8 * i, token_below if i else token
                if own_row < n_used and own_token < n_tokens:
                    factor = g.divide(g.float32(1), state[2 * i + 1])
                    own = head * group + g.int32(g.uint32(own_row) % g.uint32(group))
                    place = g.int64(own_token) * out_stride + own * head_dim + (lane & 3) * 2
                    for j in range(n_dim_tiles):
                        out[place + j * 8] = sums[j * 4 + 2 * i] * factor
                        out[place + j * 8 + 1] = sums[j * 4 + 2 * i + 1] * factor

    return CudaKernel(
        kernel,
        "f32* i32 f32* i32 u32* u32* i64 i64 i64* i64* i64* i32 f32",
        threads,
        shared_bytes,
        opcodes=("HMMA.16816.F32", "LDGSTS.E.BYPASS", "LDSM.16", "LDG.E.128"),
        work=Work("position of a query head", 0, 4 * head_dim),
    )

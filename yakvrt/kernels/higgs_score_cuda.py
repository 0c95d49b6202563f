"""CUDA kernels that score selector blocks straight from their codes, on the tensor cores, for all queries of
a KV head at once (see higgs_score.py: queries and grid as bytes, exact sums).

A codeword of bytes is one or two words of a tensor core's fragment as it lies in the grid. So a warp looks
codewords up in shared memory, where every lane has a copy of the grid in its own bank, and multiplies tiles
of 16 tokens with up to 8 queries. For each code that is one byte permutation, which makes the address, and
one or two loads without conflicts. Lanes of a quad take every fourth vector of codes, whichever dimensions
those are: the query bytes follow the same order. Mean rows are a sum of their own (higgs_mean_score_cuda.py).
"""

from __future__ import annotations

from typing import Any

from .cuda_kernel import CudaKernel, Work
from .higgs_layout import BLOCK_TOKENS, SELECTORS
from .higgs_mean_score_cuda import TABLE_BYTES, make_add_means, make_fill_means
from .higgs_query_cuda import query_words

LOG2_E = 1.4426950408889634
LEAST = -1e30  # the largest logit of no tokens
BOOK_BYTES = 1 << 16


def higgs_score_cuda(g: Any, kind: str, head_dim: int, group: int) -> CudaKernel:
    """Logits of the queries of every KV head with the keys of its selector blocks, -inf from its length to
    the end of that block; and of each block of the grid the largest logit and the sum of exponentials
    relative to it.

    Grid: x, as many blocks as share a segment, whatever its length; y, segments: rows times KV heads.
    Shapes: logits float32 [segments][G][logits_stride], stats float32 [segments][G][n_slots][2], of which the
    grid's blocks fill those from first_slot on; queries and records of higgs_query_cuda, blocks uint32 with
    strides in words, lengths int64 [segments], words to mean_step as in make_add_estimate
    (higgs_residual_cuda.py).
    Raises: ValueError for a group of more than 16 queries.
    """
    selector = SELECTORS[kind]
    if not 1 <= group <= 16:
        raise ValueError(f"a group of {group} queries has no CUDA kernel: 1 to 16 are supported")
    dim, n_vectors, n_words = selector.dim, selector.tile_vectors(head_dim), query_words(kind, head_dim)
    n_steps, n_tiles, threads, block_tokens = -(-n_vectors // 4), -(-group // 8), 256, BLOCK_TOKENS
    warps = threads // 32
    block_words, tile_words = selector.block_bytes(head_dim) // 4, selector.tile_bytes(head_dim) // 4
    scale_words, n_halves, whole = selector.scales(head_dim) // 4, dim // 4, n_vectors % 4 == 0
    n_fragments, n_held, n_columns = n_steps * dim * n_tiles, 4 * n_steps, 2 * n_tiles
    n_sums, n_logits, n_shared = 4 * n_tiles, 8 * n_tiles, warps * 16
    log2_e, least, lowest, book_bytes = LOG2_E, LEAST, float("-inf"), BOOK_BYTES
    has_means = selector.mean_grid is not None
    fill_means, add_means = make_fill_means(g, threads), make_add_means(g, kind, head_dim, group)

    @g.inline
    def look_up(table, word, byte, bank):  # type: ignore[no-untyped-def]
        """Offset of this lane's copy of a codeword: 256 times the code, and the bank."""
        return g.permute_bytes(word, bank, 0x5504 | byte << 4)

    @g.inline
    def join(largest, total, other, other_total):  # type: ignore[no-untyped-def]
        """The sum of both, relative to the larger."""
        new, log2_e_ = max(largest, other), g.float32(log2_e)
        return total * g.exp2((largest - new) * log2_e_) + other_total * g.exp2((other - new) * log2_e_)

    def kernel(  # type: ignore[no-untyped-def]
        logits,
        logits_stride,
        stats,
        n_slots,
        first_slot,
        queries,
        records,
        blocks,
        slot_stride,
        head_stride,
        slots,
        n_heads,
        lengths,
        words,
        grid_step,
        mean_words,
        mean_step,
        n_rows,
    ):
        segment, thread = g.block_y(), g.thread()
        lane, warp = g.int32(thread % 32), g.int32(thread // 32)
        row = g.int32(g.uint32(segment) // g.uint32(n_heads))
        if row >= n_rows[0]:
            return
        table, mean_table = g.dynamic_u32(0), g.dynamic_u32(book_bytes)
        for i in range(warp, g.int32(256), g.int32(warps)):
            for half in range(n_halves):
                table[i * 64 + half * 32 + lane] = words[i * n_halves + half]
        if has_means:
            fill_means(mean_table, mean_words, thread)
        n = g.int32(lengths[segment])
        n_all = g.int32((n + block_tokens - 1) // block_tokens * block_tokens)
        blocks = g.shifted(blocks, slots[row] * slot_stride + (segment - row * n_heads) * head_stride)
        quad, column, bank = g.int32(lane // 4), g.int32(lane % 4), g.uint32(lane * 4)
        fragments = g.local_u32(n_fragments)
        for tile in range(n_tiles):
            query = tile * 8 + quad
            for step in range(n_steps):
                for part in range(0, dim, 4):
                    at = (tile * n_steps + step) * dim + part
                    a, b, c, d = g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0)
                    if query < group and step * 4 + column < n_vectors:
                        origin = (segment * group + query) * n_words + (step * 4 + column) * dim + part
                        a, b, c, d = g.load_constant_u32x4(queries, origin)
                    fragments[at], fragments[at + 1] = a, b
                    fragments[at + 2], fragments[at + 3] = c, d
        factors, after, before = g.local_f32(n_columns), g.local_f32(n_columns), g.local_f32(n_columns)
        largest, totals = g.local_f32(n_columns), g.local_f32(n_columns)
        for i in range(n_columns):
            query = min(i // 2 * 8 + column * 2 + i % 2, group - 1)
            x, y, z, _ = g.load_constant_f32x4(records, (segment * group + query) * 4)
            factors[i], after[i], before[i] = x, y, z
            largest[i], totals[i] = g.float32(least), g.float32(0)
        g.sync_threads()
        turn = g.int32(g.n_blocks() * (warps * 32))
        for turn_start in range(g.int32(g.block() * (warps * 32)), n_all, turn):
            # warps without tokens take part, with -inf: control that is the same in all of them is cheaper
            unlimited = g.int32(turn_start + warp * 32)
            start = g.int32(min(unlimited, n_all - 32))
            own = g.shifted(blocks, g.int64(start // block_tokens) * block_words)
            tile_at = g.int32(
                (start % block_tokens // 16 + quad // 4) * tile_words + quad % 4 * 4 + column * 16
            )
            held = g.local_u32(n_held)
            for step in range(n_steps):
                a, b, c, d = g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0)
                if whole or step * 4 + column < n_vectors:
                    a, b, c, d = g.load_constant_u32x4(own, g.int32(tile_at + step * 64))
                held[step * 4], held[step * 4 + 1], held[step * 4 + 2], held[step * 4 + 3] = a, b, c, d
            token = g.int32(unlimited + quad * 4)
            scales_at = g.int32(scale_words + (start % block_tokens + quad * 4) // 2)
            pair, next_pair = own[scales_at], own[scales_at + 1]
            scores, offsets = g.local_f32(n_logits), g.local_f32(n_columns)
            for i in range(n_columns):
                offsets[i] = after[i]
            if has_means:
                first = g.int32(start % block_tokens)
                ratio = g.divide(mean_step, grid_step)
                add_means(offsets, own, first, mean_table, fragments, factors, before, ratio, lane)
            for rows in range(2):
                sums = g.local_i32(n_sums)
                for i in range(n_sums):
                    sums[i] = 0
                for step in range(n_steps):
                    upper, lower = held[step * 4 + rows * 2], held[step * 4 + rows * 2 + 1]
                    for k in range(dim // 2):
                        code, next_code = (k, k) if dim == 8 else (2 * k, 2 * k + 1)
                        skip = 128 if dim == 8 else 0
                        a0 = g.load_u32_at(table, look_up(table, upper, code, bank))
                        a1 = g.load_u32_at(table, look_up(table, lower, code, bank))
                        a2 = g.load_u32_at(table, g.uint32(look_up(table, upper, next_code, bank) + skip))
                        a3 = g.load_u32_at(table, g.uint32(look_up(table, lower, next_code, bank) + skip))
                        for tile in range(n_tiles):
                            at, s = (tile * n_steps + step) * dim + 2 * k, tile * 4
                            sums[s], sums[s + 1], sums[s + 2], sums[s + 3] = g.mma_m16n8k32_u8_s8(
                                a0,
                                a1,
                                a2,
                                a3,
                                fragments[at],
                                fragments[at + 1],
                                sums[s],
                                sums[s + 1],
                                sums[s + 2],
                                sums[s + 3],
                            )
                word = pair if rows == 0 else next_pair
                for i in range(n_sums):
                    column_at = i // 4 * 2 + i % 2
                    scale = g.low_f16(word) if i % 4 < 2 else g.high_f16(word)
                    score = (g.float32(sums[i]) + before[column_at]) * (factors[column_at] * scale)
                    score += offsets[column_at]
                    if g.int32(token + rows * 2 + i % 4 // 2) >= n:
                        score = g.float32(lowest)
                    scores[column_at * 4 + rows * 2 + i % 4 // 2] = score
            for i in range(n_columns):
                a, b, c, d = scores[i * 4], scores[i * 4 + 1], scores[i * 4 + 2], scores[i * 4 + 3]
                query = g.int32(i // 2 * 8 + column * 2 + i % 2)
                if query < group and token < n_all:
                    place = (g.int64(segment) * group + query) * logits_stride + token
                    g.store_f32x4(logits, place, a, b, c, d)
                new = max(max(largest[i], max(a, b)), max(c, d))
                offset, factor = -new * g.float32(log2_e), g.float32(log2_e)
                shrunk = totals[i] * g.exp2((largest[i] - new) * factor)
                two = g.exp2(g.fma(a, factor, offset)) + g.exp2(g.fma(b, factor, offset))
                further = g.exp2(g.fma(c, factor, offset)) + g.exp2(g.fma(d, factor, offset))
                totals[i], largest[i] = shrunk + (two + further), new
        maxima, sums_of_warps = g.shared_f32(n_shared), g.shared_f32(n_shared)
        for i in range(n_columns):
            for mask in (4, 8, 16):
                other, other_total = g.shuffle_xor(largest[i], mask), g.shuffle_xor(totals[i], mask)
                totals[i] = join(largest[i], totals[i], other, other_total)
                largest[i] = max(largest[i], other)
            if quad == 0:
                place = warp * 16 + i // 2 * 8 + column * 2 + i % 2
                maxima[place], sums_of_warps[place] = largest[i], totals[i]
        g.sync_threads()
        if thread < group:
            best, total = maxima[thread], sums_of_warps[thread]
            for i in range(1, warps):
                other = maxima[i * 16 + thread]
                total = join(best, total, other, sums_of_warps[i * 16 + thread])
                best = max(best, other)
            place = ((g.int64(segment) * group + thread) * n_slots + first_slot + g.block()) * 2
            stats[place], stats[place + 1] = best, total

    return CudaKernel(
        kernel,
        "f32* i64 f32* i32 i32 u32* f32* u32* i64 i64 i64* i32 i64* u32* f32 u32* f32 i64*",
        threads,
        shared_bytes=BOOK_BYTES + (TABLE_BYTES if has_means else 0),
        opcodes=("LDG.E.128", "STG.E.128", "IMMA", "LDS"),
        work=Work("token of a head", selector.block_bytes(head_dim) // BLOCK_TOKENS + 4 * group, 0),
    )

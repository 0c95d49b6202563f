"""What mean rows add to scores on the tensor cores (see higgs_score_cuda.py, of which this is a part).

The four mean rows of a warp's 32 tokens are multiplied with the fragments of queries that the tokens' codes
meet: a lane of a quad takes the codes of the dimensions that it holds of the queries. Quads 2 r and 2 r + 1
look up the same row r, whose sums then lie with the tokens that share it; rows 8 to 15 of the tile are zero.
A point has 16 copies in shared memory, in banks of their own for the 16 different look-ups of a warp.
"""

from __future__ import annotations

from typing import Any

from .higgs_layout import META_TOKENS, SELECTORS

COPIES = 16
TABLE_BYTES = 256 * COPIES * 4


def make_fill_means(g: Any, threads: int) -> Any:
    """An inline fill_means(table, words, thread): TABLE_BYTES of shared memory, by a block of threads; words:
    GridTables.words8 of the grid of mean rows, uint32 [256].
    """
    n_words, copies = TABLE_BYTES // 4, COPIES

    @g.inline
    def fill_means(table, words, thread):  # type: ignore[no-untyped-def]
        for i in range(thread, g.int32(n_words), g.int32(threads)):
            table[i] = words[i // copies]

    return fill_means


def make_add_means(g: Any, kind: str, head_dim: int, group: int) -> Any:
    """An inline add_means(offsets, block, first, table, fragments, factors, before, step, lane): adds to what
    every column of scores is offset by the part of the mean row of the lane's four tokens.

    first: of the warp's tokens in their block; step: of the grid of mean rows, in steps of the tokens' grid.
    """
    selector = SELECTORS[kind]
    dim, n_vectors, n_tiles = selector.dim, selector.tile_vectors(head_dim), -(-group // 8)
    n_steps, n_sums, n_columns, whole = -(-n_vectors // 4), 4 * n_tiles, 2 * n_tiles, n_vectors % 4 == 0
    codes_at, scales_at = selector.mean_codes(head_dim) // 4, selector.mean_scales(head_dim) // 4
    group_tokens, row_shift = META_TOKENS, 3

    @g.inline
    def four_bytes(table, word, byte, bank):  # type: ignore[no-untyped-def]
        """Two points of codes byte and byte + 1: 64 times a code, and the bank."""
        one = g.permute_bytes(word, bank, 0x5504 | byte << 4) >> 2
        two = g.permute_bytes(word, bank, 0x5504 | byte + 1 << 4) >> 2
        return g.permute_bytes(
            g.load_u32_at(table, g.uint32(one)), g.load_u32_at(table, g.uint32(two)), 0x5410
        )

    @g.inline
    def add_means(offsets, block, first, table, fragments, factors, before, step, lane):  # type: ignore[no-untyped-def]
        column, row = g.int32(lane % 4), g.int32(lane >> row_shift)
        bank = g.uint32((row * 4 + column) * 16)
        own = g.int32(first // group_tokens) + row
        pair = block[scales_at + own // 2]
        scale = (g.high_f16(pair) if own % 2 else g.low_f16(pair)) * step
        sums = g.local_i32(n_sums)
        for i in range(n_sums):
            sums[i] = 0
        for vectors in range(n_steps):
            vector = g.int32(vectors * 4 + column)
            for part in range(dim // 4):  # 8 codes of a row, 16 dimensions
                a, b = g.uint32(0), g.uint32(0)
                if whole or vector < n_vectors:
                    at = codes_at + (vector * (dim // 4) + part) * 16 + own * 2
                    a, b = g.load_constant_u32x2(block, g.int64(at))
                for k in range(2):
                    word = a if k == 0 else b
                    a0, a2 = four_bytes(table, word, 0, bank), four_bytes(table, word, 2, bank)
                    for tile in range(n_tiles):
                        at, s = (tile * n_steps + vectors) * dim + part * 4 + k * 2, tile * 4
                        sums[s], sums[s + 1], sums[s + 2], sums[s + 3] = g.mma_m16n8k32_u8_s8(
                            a0,
                            g.uint32(0),
                            a2,
                            g.uint32(0),
                            fragments[at],
                            fragments[at + 1],
                            sums[s],
                            sums[s + 1],
                            sums[s + 2],
                            sums[s + 3],
                        )
        for i in range(n_columns):
            total = g.float32(sums[i // 2 * 4 + i % 2]) + before[i]
            offsets[i] += total * (factors[i] * scale)

    return add_means

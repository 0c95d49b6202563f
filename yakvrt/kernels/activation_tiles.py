"""Activations as wgmma reads them from shared memory: bfloat16 in tiles of 256 rows and 64 columns, each in
one piece, so that one copy brings what a step takes.

A row's 64 columns are 128 bytes, in 8 pieces of 16; row r holds piece p in place p ^ r % 8: the 128-byte
swizzle of a tile that begins at a multiple of 1024 bytes. Columns that fill the last tile up are 0, further
rows hold anything.
Shapes: uint32 [tiles of rows, tiles of columns, 256, 32].
Source: PTX ISA 9.0, shared memory layouts of wgmma.mma_async: K-major, 128-byte swizzle.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cuda_kernel import CudaKernel, Work

TILE_ROWS, TILE_COLUMNS = 256, 64
ROW_WORDS = TILE_COLUMNS // 2  # of a row in a tile
TILE_WORDS = TILE_ROWS * ROW_WORDS


def tile_counts(n_rows: int, n_cols: int) -> tuple[int, int]:
    """Of rows, of columns."""
    return -(-n_rows // TILE_ROWS), -(-n_cols // TILE_COLUMNS)


def activation_tiles_ref(words: np.ndarray) -> np.ndarray:
    """Rows of pairs of bfloat16 as tiles; further rows are 0. Shapes: [n, cols / 2] -> as above."""
    down, across = tile_counts(len(words), 2 * words.shape[1])
    wide = np.zeros((down * TILE_ROWS, across * ROW_WORDS), np.uint32)
    wide[: len(words), : words.shape[1]] = words
    pieces = wide.reshape(down, TILE_ROWS, across, 8, 4).transpose(0, 2, 1, 3, 4)
    row, place = np.arange(TILE_ROWS)[:, None], np.arange(8)
    swizzled = pieces[:, :, row, place ^ row % 8]
    return np.ascontiguousarray(swizzled).reshape(down, across, TILE_ROWS, ROW_WORDS)


def make_swizzled(g: Any) -> Any:
    """swizzled(row, piece): the word where a row's piece of 8 numbers lies in its tile."""

    @g.inline
    def swizzled(row, piece):  # type: ignore[no-untyped-def]
        return g.int32(row * ROW_WORDS + ((piece ^ (row & 7)) << 2))

    return swizzled


def round_tiles_cuda(g: Any) -> CudaKernel:
    """Contiguous rows to tiles. Columns are a multiple of 8.

    Grid: x, blocks of 1024 columns, the last tile's all counted; y, rows.
    """
    threads = 128
    swizzled = make_swizzled(g)

    def kernel(out, x, n_cols, n_rows):  # type: ignore[no-untyped-def]
        row, column = g.block_y(), (g.block() * threads + g.thread()) * 8
        across = (n_cols + TILE_COLUMNS - 1) // TILE_COLUMNS
        if row < n_rows[0] and column < across * TILE_COLUMNS:
            ab, cd, ef, hi = g.uint32(0), g.uint32(0), g.uint32(0), g.uint32(0)
            if column < n_cols:
                at = g.int64(row) * n_cols + column
                a, b, c, d = g.load_f32x4(x, at)
                e, f, h, i = g.load_f32x4(x, at + 4)
                ab, cd, ef, hi = g.pack_bf16(a, b), g.pack_bf16(c, d), g.pack_bf16(e, f), g.pack_bf16(h, i)
            tile = g.int64(row // TILE_ROWS) * across + column // TILE_COLUMNS
            place = swizzled(row % TILE_ROWS, column % TILE_COLUMNS // 8)
            g.store_u32x4(out, tile * TILE_WORDS + place, ab, cd, ef, hi)

    return CudaKernel(
        kernel,
        "u32* f32* i32 i64*",
        threads,
        opcodes=("LDG.E.128", "STG.E.128", "F2FP.BF16"),
        work=Work("number", 6, 1),
    )

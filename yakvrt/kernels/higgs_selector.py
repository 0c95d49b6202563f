"""Selector blocks: the keys of 64 tokens as codes that higgs_score reads (see higgs_layout.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .higgs_encode import (
    EncodeScratch,
    decode_ref,
    encode_rotated_ref,
    make_find_codes,
    make_normalise,
    make_put_scale,
    make_rotate_rows,
)
from .higgs_layout import BLOCK_TOKENS, META_TOKENS, SELECTORS, TILE_TOKENS
from .rotate import rotation


def encode_selector_ref(
    kind: str,
    rows: np.ndarray,
    grid: np.ndarray,
    mean_grid: np.ndarray | None = None,
    mean: np.ndarray | None = None,
    scale_rule: str = "unbiased",
    signs: bool = False,
) -> np.ndarray:
    """Whole blocks of the rows of one head; what lies beyond the last row has code 0 and scale 0.

    Shapes: rows [n, D] -> uint8 [ceil(n / 64), bytes of a block].
    """
    n, head_dim = rows.shape
    selector = SELECTORS[kind]
    blocks = np.zeros((-(-n // BLOCK_TOKENS), selector.block_bytes(head_dim)), np.uint8)
    centred = rows.astype(np.float64) - (0 if mean is None else mean)
    rotated = centred @ rotation(head_dim, signs).T.astype(np.float64)
    if mean_grid is not None:
        for group in range(-(-n // META_TOKENS)):
            members = slice(group * META_TOKENS, (group + 1) * META_TOKENS)
            codes, scale = encode_rotated_ref(rotated[members].mean(axis=0), mean_grid)
            rotated[members] -= decode_ref(codes, scale, mean_grid, rotated=True)
            block, r = blocks[group * META_TOKENS // BLOCK_TOKENS], group % (BLOCK_TOKENS // META_TOKENS)
            area = block[selector.mean_codes(head_dim) :][: 4 * head_dim].reshape(-1, 8, 8)
            area[:, r] = codes.reshape(-1, 8)
            block[selector.mean_scales(head_dim) :].view(np.float16)[r] = scale
    codes, scales = encode_rotated_ref(rotated, grid, scale_rule)
    padded = np.zeros((n, 4 * selector.tile_vectors(head_dim)), np.uint8)
    padded[:, : codes.shape[1]] = codes
    for token in range(n):
        block, t = blocks[token // BLOCK_TOKENS], token % BLOCK_TOKENS
        tiles = block[: selector.scales(head_dim)].reshape(4, -1, TILE_TOKENS, 4)
        tiles[t // TILE_TOKENS, :, t % TILE_TOKENS] = padded[token].reshape(-1, 4)
        block[selector.scales(head_dim) :][: 2 * BLOCK_TOKENS].view(np.float16)[t] = scales[token]
    return blocks


def selector_codes_ref(kind: str, blocks: np.ndarray, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of every token of blocks.

    Shapes: blocks uint8 [B, bytes] -> uint8 [64 B, D / dim], float16 [64 B].
    """
    selector = SELECTORS[kind]
    tiles = np.ascontiguousarray(blocks[:, : selector.scales(head_dim)])
    n_vectors = selector.tile_vectors(head_dim)
    tiles = tiles.reshape(len(blocks), 4, n_vectors, TILE_TOKENS, 4).transpose(0, 1, 3, 2, 4)
    codes = tiles.reshape(len(blocks) * BLOCK_TOKENS, 4 * n_vectors)[:, : head_dim // selector.dim]
    area = np.ascontiguousarray(blocks[:, selector.scales(head_dim) :][:, : 2 * BLOCK_TOKENS])
    return codes, area.view(np.float16).reshape(-1)


def selector_blocks_ref(kind: str, codes: np.ndarray, scales: np.ndarray, head_dim: int) -> np.ndarray:
    """Whole blocks without mean rows, of which selector_codes_ref gives the codes and scales.

    Shapes: codes uint8 [64 B, D / dim], scales float16 [64 B] -> uint8 [B, bytes].
    """
    n_vectors, n_blocks = SELECTORS[kind].tile_vectors(head_dim), len(codes) // BLOCK_TOKENS
    padded = np.pad(codes, [(0, 0), (0, 4 * n_vectors - codes.shape[1])])
    tiles = padded.reshape(n_blocks, 4, TILE_TOKENS, n_vectors, 4).transpose(0, 1, 3, 2, 4)
    kept = np.ascontiguousarray(scales).view(np.uint8)
    return np.concatenate([tiles.reshape(n_blocks, -1), kept.reshape(n_blocks, -1)], axis=1)


def mean_rows_ref(kind: str, blocks: np.ndarray, head_dim: int, mean_grid: np.ndarray) -> np.ndarray:
    """The mean row of every token of blocks, rotated, float64.

    Shapes: blocks uint8 [B, bytes] -> [64 B, D].
    """
    selector = SELECTORS[kind]
    area = blocks[:, selector.mean_codes(head_dim) : selector.mean_scales(head_dim)]
    area = np.ascontiguousarray(area).reshape(len(blocks), head_dim // 16, 8, 8).transpose(0, 2, 1, 3)
    scales = np.ascontiguousarray(blocks[:, selector.mean_scales(head_dim) :][:, :16]).view(np.float16)
    codes = area.reshape(len(blocks) * 8, head_dim // 2)
    return np.repeat(decode_ref(codes, scales.reshape(-1), mean_grid, rotated=True), META_TOKENS, axis=0)


def decode_selector_ref(
    kind: str,
    blocks: np.ndarray,
    n: int,
    head_dim: int,
    grid: np.ndarray,
    mean_grid: np.ndarray | None = None,
) -> np.ndarray:
    """The rotated, centred keys that blocks stand for, float64.

    Shapes: blocks uint8 [B, bytes] -> [n, D].
    """
    keys = decode_ref(*selector_codes_ref(kind, blocks, head_dim), grid, rotated=True)
    if mean_grid is not None:
        keys = keys + mean_rows_ref(kind, blocks, head_dim, mean_grid)
    return keys[:n]


def make_encode_selector(kind: str, head_dim: int, scale_rule: str = "unbiased", signs: bool = False) -> Any:
    """An inline encode_selector(rows, row_stride, mean, first, n_tokens, block, tables, mean_tables,
    scratch): tokens first .. first + n_tokens - 1 of one block (of 64), whose rows begin at `rows`.

    Other tokens of the block stay as they are; start a block with clear_block. For "1.5bit" `first` must be a
    multiple of 8, and an unfinished group of 8 has the mean of its tokens so far: encode it again when it
    grows. `mean_tables`: of the grid of mean rows, 0 where the kind has none. `scratch`:
    encode_scratch_bytes(head_dim) bytes.
    """
    from ..cpu import vector_ops as v

    selector = SELECTORS[kind]
    at = EncodeScratch(head_dim)
    at_codes, at_scores, at_scales = at.codes, at.scores, at.scales
    put_scale = make_put_scale()
    rotate_rows, normalise = make_rotate_rows(head_dim, signs), make_normalise(head_dim)
    find_codes = make_find_codes(head_dim, selector.dim, 256, scale_rule)
    n_codes, tile_bytes = head_dim // selector.dim, selector.tile_bytes(head_dim)
    scales_offset = selector.scales(head_dim)
    whole_words = n_codes // 4 * 4
    residual = selector.mean_grid is not None
    subtract_means: Any = _make_subtract_means(kind, head_dim) if residual else None

    @v.inline
    def encode_selector(
        rows: int,
        row_stride: int,
        mean: int,
        first: int,
        n_tokens: int,
        block: int,
        tables: int,
        mean_tables: int,
        scratch: int,
    ) -> None:
        done = 0
        while done < n_tokens:
            token = first + done
            n = min(TILE_TOKENS - token % TILE_TOKENS, n_tokens - done)
            rotate_rows(rows + done * row_stride, row_stride, mean, n, scratch)
            if residual:
                subtract_means(token, n, block, mean_tables, scratch)
            normalise(n, scratch, scratch + at_scales)
            find_codes(n, tables, scratch, scratch + at_codes, scratch + at_scores, scratch + at_scales)
            for i in range(n):
                source = scratch + at_codes + i * n_codes
                target = block + (token + i) // TILE_TOKENS * tile_bytes + (token + i) % TILE_TOKENS * 4
                for j in range(0, whole_words, 4):
                    v.put_i32(target + j * 16, v.get_i32(source + j))
                if whole_words < n_codes:  # half a word: sizes that are odd multiples of 16, sub-vectors of 8
                    v.put_i32(target + whole_words * 16, v.get_u16(source + whole_words))
                put_scale(block + scales_offset + (token + i) * 2, v.get_f32(scratch + at_scales + i * 4))
            done += n

    return encode_selector


def _make_subtract_means(kind: str, head_dim: int) -> Any:
    """An inline subtract_means(token, n_tokens, block, mean_tables, scratch): stores the means of the rotated
    rows in the scratch, per 8 tokens, and subtracts what they decode to.
    """
    from ..cpu import vector_ops as v
    from .higgs_rows import make_decode_row

    selector = SELECTORS[kind]
    at = EncodeScratch(head_dim)
    at_codes, at_scores, at_scales, at_spare = at.codes, at.scores, at.scales, at.spare
    codes_offset, scales_offset = selector.mean_codes(head_dim), selector.mean_scales(head_dim)
    put_scale = make_put_scale()
    normalise, find_codes = make_normalise(head_dim), make_find_codes(head_dim, 2, 256, "norm")
    decode_row = make_decode_row("q4", head_dim)
    row_bytes = head_dim * 4

    @v.inline
    def subtract_means(token: int, n_tokens: int, block: int, mean_tables: int, scratch: int) -> None:
        spare, codes, scale = scratch + at_spare, scratch + at_codes, scratch + at_scales
        for group in range(0, n_tokens, META_TOKENS):
            n = min(META_TOKENS, n_tokens - group)
            rows = scratch + group * row_bytes
            part = v.splat(np.float32(1) / np.float32(n))
            for j in range(0, row_bytes, 64):
                total = v.load_f32(rows + j)
                for i in range(1, n):
                    total = v.add(total, v.load_f32(rows + i * row_bytes + j))
                v.store_f32(spare + j, v.mul(total, part))
            normalise(1, spare, scale)
            find_codes(1, mean_tables, spare, codes, scratch + at_scores, scale)
            r = (token + group) // META_TOKENS
            for j in range(0, head_dim // 2, 8):
                v.put_i64(block + codes_offset + j * 8 + r * 8, v.get_i64(codes + j))
            kept = block + scales_offset + r * 2
            put_scale(kept, v.get_f32(scale))
            decode_row(spare, codes, v.get_f16(kept), mean_tables)
            for i in range(n):
                for j in range(0, row_bytes, 64):
                    row = rows + i * row_bytes + j
                    v.store_f32(row, v.sub(v.load_f32(row), v.load_f32(spare + j)))

    return subtract_means


def make_clear_block(kind: str, head_dim: int) -> Any:
    """An inline clear_block(block): zero codes and scales."""
    from ..cpu import vector_ops as v

    n_bytes = SELECTORS[kind].block_bytes(head_dim)

    @v.inline
    def clear_block(block: int) -> None:
        for i in range(0, n_bytes, 64):
            v.store_f32(block + i, v.zero())

    return clear_block


def encode_selector_cpu(kind: str, head_dim: int, scale_rule: str, signs: bool) -> Any:
    """Blocks of the rows of one head from its first token on. Threads share the blocks.

    Args: rows, row_stride, mean, n_tokens*, blocks, tables, mean_tables, scratch, scratch_stride.
    """
    from ..cpu import vector_ops as v

    encode_selector = make_encode_selector(kind, head_dim, scale_rule, signs)
    clear_block, block_bytes = make_clear_block(kind, head_dim), SELECTORS[kind].block_bytes(head_dim)

    def kernel(thread: int, n_threads: int, counter: int, args: int) -> None:
        rows, row_stride, mean = v.get_i64(args), v.get_i64(args + 8), v.get_i64(args + 16)
        n_tokens, blocks = v.get_i64(v.get_i64(args + 24)), v.get_i64(args + 32)
        tables, mean_tables = v.get_i64(args + 40), v.get_i64(args + 48)
        scratch = v.get_i64(args + 56) + thread * v.get_i64(args + 64)
        n_blocks = (n_tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS
        first, last = v.share(n_blocks, thread, n_threads, 0)
        for i in range(first, last):
            start, block = i * BLOCK_TOKENS, blocks + i * block_bytes
            n = min(BLOCK_TOKENS, n_tokens - start)
            clear_block(block)
            encode_selector(
                rows + start * row_stride, row_stride, mean, 0, n, block, tables, mean_tables, scratch
            )

    return kernel

"""HIGGS codes: rotating and encoding rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from yakvrt.cuda.kernel_list import HEAD_DIMS, ROTATIONS
from yakvrt.higgs_grids import load_grid
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.higgs_encode import encode_ref
from yakvrt.kernels.higgs_encode_cuda import rows_of_a_block
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS, SELECTORS, Selector, byte_grid, pack_tables
from yakvrt.kernels.higgs_residual import encode_residuals_ref, estimate_ref
from yakvrt.kernels.higgs_residual_cuda import subtract_estimates_ref
from yakvrt.kernels.higgs_rows import unpack_sixes_ref
from yakvrt.kernels.higgs_selector import encode_selector_ref
from yakvrt.kernels.rotate import rotation, rotation_lanes

from .arrays import RNG, blocks, count, normal, poisoned, sample
from .case import Case, Launch, Mismatch, Sized, compare, sized, untouched


def rotate(head_dim: int, inverse: bool, signs: bool, n_rows: int) -> Case:
    """Rows of a wider array, a row too many."""
    matrix = rotation(head_dim, signs)
    x, out = normal(n_rows, head_dim + 4), poisoned(n_rows + 1, head_dim)
    launch = Launch(
        kernel("rotate", "rotate_cuda", head_dim, inverse, signs),
        blocks(n_rows, 128 // rotation_lanes(head_dim)),
        [out],
        (out, head_dim, x, head_dim + 4, count(n_rows)),
        2 * n_rows * head_dim * 4,
    )

    def check() -> float:
        untouched("further rows", out[n_rows:])
        expected = x[:, :head_dim].astype(np.float64) @ (matrix if inverse else matrix.T)
        return compare("out", out[:n_rows], expected, atol=3e-6)

    return Case([launch], check)


def search_table(grid: np.ndarray) -> np.ndarray:
    """The points as the search reads them, with half of their square."""
    half = len(grid) // 2
    return pack_tables(grid)[: half * (grid.shape[1] + 1) * 4].view(np.float32)


class Written:
    """Where the codes and scales of tokens lie: in rows of their own, or in selector blocks of 64 tokens."""

    def __init__(self, layout: str, dim: int, head_dim: int, shape: tuple[int, int], n_tokens: int) -> None:
        self.layout, self.dim, self.head_dim, self.per_row = layout, dim, head_dim, head_dim // dim
        if layout == "blocks":
            self.selector = next(s for s in SELECTORS.values() if s.dim == dim and not s.mean_grid)
            n_bytes = blocks(n_tokens, BLOCK_TOKENS) * self.selector.block_bytes(head_dim)
            self.held = np.full((*shape, n_bytes), 0xCD, np.uint8)
            self.scales, self.row_words, self.step = self.held.view(np.uint16), 0, 0
        else:
            self.row_words, self.step = self.per_row // 4 + 3, 2
            self.held = np.full((*shape, n_tokens, self.row_words * 4), 0xCD, np.uint8)
            self.scales = np.full((*shape, n_tokens * self.step), 0xCDCD, np.uint16)
        self.words = self.held.view(np.uint32)
        self.outputs = [self.words] if layout == "blocks" else [self.words, self.scales]

    def arguments(self) -> tuple[Any, ...]:
        words, scales = self.words, self.scales
        strides = (words.strides[0] // 4, words.strides[1] // 4, self.row_words)
        return (words, *strides, scales, scales.strides[0] // 2, scales.strides[1] // 2, self.step)

    def read(self, slot: int, head: int, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes and scales; what was read becomes poison, so that the rest can be looked at."""
        held, scales = self.held[slot, head], self.scales[slot, head]
        if self.layout == "blocks":
            at, scale_at = self._places(self.selector, tokens)
            codes, found = held[at], scales[scale_at].view(np.float16)
            if codes[:, self.per_row :].any():
                raise Mismatch("codes that fill up a tile are not zero")
            held[at], scales[scale_at] = 0xCD, 0xCDCD
            return codes[:, : self.per_row], found
        n_bytes = self.per_row if self.layout == "bytes" else self.per_row // 4 * 3
        codes, found = held[tokens, :n_bytes], scales[tokens * self.step].view(np.float16)
        held[tokens, :n_bytes], scales[tokens * self.step] = 0xCD, 0xCDCD
        return (codes if self.layout == "bytes" else unpack_sixes_ref(codes)), found

    def _places(self, selector: Selector, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bytes of the tokens' codes, padding included, and numbers of their scales."""
        block = tokens // BLOCK_TOKENS * selector.block_bytes(self.head_dim)
        tile = tokens % BLOCK_TOKENS // 16 * selector.tile_bytes(self.head_dim) + tokens % 16 * 4
        k = np.arange(selector.tile_vectors(self.head_dim) * 4)
        scales = block // 2 + selector.scales(self.head_dim) // 2 + tokens % BLOCK_TOKENS
        return (block + tile)[:, None] + k // 4 * 64 + k % 4, scales


def encode(
    dim: int,
    n_points: int,
    layout: str,
    head_dim: int,
    rule: str,
    centred: bool,
    signs: bool,
    n_rows: int,
    n_heads: int = 2,
) -> Case:
    """Rows of slot 1, from place 1 on, none of slot 0; a row too many. Some are zero, some large."""
    grid = load_grid(f"d{dim}n{n_points}")
    first = 61 if layout == "blocks" else 2  # its block ends soon
    x, means = normal(2, n_heads, n_rows, head_dim), normal(2, n_heads, head_dim)
    x[1, 0, 3] = means[1, 0] if centred else 0
    x[1, 1, 5] *= 1e6
    written = Written(layout, dim, head_dim, (2, n_heads), first + n_rows + 4)
    parameters = (dim, n_points, layout, head_dim, rule, centred, signs)
    spans = np.array([[1, 0, 0], [first, 2, 2], [first + n_rows - 3, 1, n_rows], [1, 1, 1]])
    slots, firsts, lasts, sources = (np.ascontiguousarray(part) for part in spans)
    given = (x, x.strides[0] // 4, x.strides[1] // 4, means, means.strides[0] // 4, search_table(grid))
    launch = Launch(
        kernel("higgs_encode_cuda", "higgs_encode_cuda", *parameters),
        (blocks(n_rows, rows_of_a_block(head_dim)), 3 * n_heads),
        written.outputs,
        (*written.arguments(), *given, slots, n_heads, firsts, lasts, sources, count(2)),
        n_heads * (n_rows - 3) * (4 * head_dim + head_dim // dim + 2),
        n_heads * (n_rows - 3) * (head_dim // dim) * (n_points // 2) * (dim + 3),
    )

    def check() -> float:
        tokens, worst = first + np.arange(n_rows - 3), 0.0
        for head in range(n_heads):
            found, found_scales = written.read(1, head, tokens)
            some = np.array(sample(len(tokens), 2000))
            rows, mean = x[1, head, 1 + some], means[1, head] if centred else None
            expected, scales = encode_ref(rows, grid, mean, rule, signs)
            compare("scales", found_scales[some], scales.astype(float), rtol=2e-3, atol=1e-7)
            y = (rows.astype(float) - (0 if mean is None else mean)) @ rotation(head_dim, signs).T.astype(
                float
            )
            worst = max(worst, _compare_codes(found[some], expected, y, grid))
        for array in written.outputs:
            untouched("what lies around", array.view(np.uint8))
        return worst

    return Case([launch], check)


def _compare_codes(found: np.ndarray, expected: np.ndarray, y: np.ndarray, grid: np.ndarray) -> float:
    """float32 may prefer another point where two are as near."""
    differ = found != expected
    if differ.mean() >= 2e-3:
        raise Mismatch(f"codes: {differ.mean():.2%} differ")
    size = np.sqrt((y**2).mean(axis=1, keepdims=True))
    y = (y / np.where(size > 0, size, 1)).reshape(*found.shape, -1)[differ]
    off = [((y - grid[codes[differ].astype(int)]) ** 2).sum(axis=1) for codes in (found, expected)]
    return compare("distances of codes that differ", off[0], off[1], rtol=1e-4, atol=1e-5)


def residuals(head_dim: int, centred: bool, n_blocks: int = 1, n_heads: int = 2) -> Case:
    """Keys of slot 1 behind its first block become residuals, then codes; none of slot 0; a row too many."""
    grid, row_grid, first = load_grid("d4n256"), load_grid("d2n64"), BLOCK_TOKENS
    n = n_blocks * BLOCK_TOKENS
    means = normal(2, n_heads, head_dim)
    keys = normal(2, n_heads, n, head_dim) + means[:, :, None]
    blocks_of_heads = [
        encode_selector_ref("2bit", head, grid, None, mean if centred else None, "norm")
        for head, mean in zip(keys[1], means[1], strict=True)
    ]
    selectors = RNG.integers(0, 256, (2, n_heads, 1 + n_blocks, blocks_of_heads[0].shape[1]), np.uint8)
    selectors[1, :, 1:] = blocks_of_heads
    x, spans = keys.copy(), np.array([[1, 0, 0], [first, 2, 0], [first + n, 2, n], [0, 0, 0]])
    slots, firsts, lasts, sources = (np.ascontiguousarray(part) for part in spans)
    given = (x, x.strides[0] // 4, x.strides[1] // 4)
    table, step = byte_grid(grid)
    residual = Launch(
        kernel("higgs_residual_cuda", "higgs_residual_cuda", "2bit", head_dim, centred),
        (blocks(n, 128 // rotation_lanes(head_dim)), 3 * n_heads),
        [x],
        (
            *(*given, selectors.view(np.uint32), selectors.strides[0] // 4, selectors.strides[1] // 4),
            *(table.view(np.uint32).reshape(-1), float(step), means if centred else None),
            *(n_heads * head_dim, slots, n_heads, firsts, lasts, sources, count(2)),
        ),
        n_heads * n * (8 * head_dim + head_dim // 4 + 2),
    )
    written = Written("sixes", 2, head_dim, (2, n_heads), first + n + 4)
    encode = Launch(
        kernel("higgs_encode_cuda", "higgs_encode_cuda", 2, 64, "sixes", head_dim, "norm", False, False),
        (blocks(n, rows_of_a_block(head_dim)), 3 * n_heads),
        written.outputs,
        (
            *(*written.arguments(), *given, None, 0, search_table(row_grid), slots, n_heads, firsts, lasts),
            *(sources, count(2)),
        ),
        n_heads * n * (4 * head_dim + head_dim * 3 // 8 + 2),
        n_heads * n * (head_dim // 2) * 32 * 5,
    )

    def check() -> float:
        worst = compare("slot 0", x[0], keys[0])
        some = np.array(sample(n, 2000))
        for head in range(n_heads):
            mean = means[1, head] if centred else None
            estimates = estimate_ref("2bit", blocks_of_heads[head], n, head_dim, grid, None)[some]
            rest = subtract_estimates_ref(keys[1, head, some], estimates, mean)
            worst = max(worst, compare("residuals", x[1, head, some], rest, atol=5e-6))
            codes, scales = encode_residuals_ref(keys[1, head, some], estimates, row_grid, mean)
            found, found_scales = written.read(1, head, first + np.arange(n))
            compare("scales", found_scales[some], scales.astype(float), rtol=2e-3)
            y = rest @ rotation(head_dim).T.astype(float)
            worst = max(worst, _compare_codes(found[some], unpack_sixes_ref(codes), y, row_grid))
        for array in written.outputs:
            untouched("what lies around", array.view(np.uint8))
        return worst

    return Case([residual, encode], check)


def small() -> list[Sized]:
    return [
        sized("rotate", rotate, 64, False, False, 9),
        sized("encode rows", encode, 2, 256, "bytes", 64, "norm", False, False, 6),
        sized("encode blocks", encode, 4, 256, "blocks", 64, "norm", True, False, 6),
        sized("residuals of keys", residuals, 64, True),
    ]


def real() -> list[Sized]:
    """A context of 128k tokens of 8 KV heads."""
    made = [
        sized(f"rotate {size}, inverse {inverse}", rotate, size, inverse, False, 131072)
        for size in ROTATIONS
        for inverse in (False, True)
    ]
    for size in HEAD_DIMS:
        for centred in (False, True):
            what = f"encode rows {size}, centred {centred}"
            made.append(sized(what, encode, 2, 256, "bytes", size, "norm", centred, False, 8192, 8))
        what = f"encode blocks {size}"
        made.append(sized(what, encode, 4, 256, "blocks", size, "norm", True, False, 8192, 8))
        made.append(sized(f"residuals of keys {size}", residuals, size, True, 32, 8))
    return made

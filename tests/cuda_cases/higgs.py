"""HIGGS codes: rotating and encoding rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from yakvrt.cuda.kernel_list import BLOCK_CODES, HEAD_DIMS, ROTATIONS
from yakvrt.higgs_grids import load_grid
from yakvrt.kernel_build.spec import kernel
from yakvrt.kernels.higgs_encode import decode_ref, encode_ref
from yakvrt.kernels.higgs_encode_cuda import rows_of_a_block
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS, META_TOKENS, SELECTORS, Selector, pack_tables
from yakvrt.kernels.higgs_residual import encode_residuals_ref, estimate_ref
from yakvrt.kernels.higgs_residual_cuda import subtract_estimates_ref
from yakvrt.kernels.higgs_rows import unpack_sixes_ref
from yakvrt.kernels.higgs_selector import encode_selector_ref
from yakvrt.kernels.rotate import rotation, rotation_lanes

from .arrays import RNG, blocks, count, normal, poisoned, sample, selector_grids, selector_words
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
            self.row_words, self.step = self.selector.block_bytes(head_dim) // 4, 0
            self.scales = self.held.view(np.uint16)
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


def mean_rows(head_dim: int, centred: bool, n_blocks: int, n_heads: int = 2) -> Case:
    """Blocks of slot 1 behind its first one, from place 2 on, none of slot 0; a row too many. A block's first
    mean row is zero.
    """
    selector, n = SELECTORS["1.5bit"], n_blocks * BLOCK_TOKENS
    _, grid = selector_grids(selector)
    assert grid is not None
    means, first = normal(2, n_heads, head_dim), BLOCK_TOKENS
    x = normal(2, n_heads, 2 + n, head_dim)
    x[1, :, 2 : 2 + META_TOKENS] = means[1, :, None] if centred else 0
    shape = 2, n_heads, 2 + n_blocks, selector.block_bytes(head_dim)
    rest, held = poisoned(*x.shape), np.full(shape, 0xCD, np.uint8)
    spans = np.array([[1, 0, 0], [first, 2, 2], [first + n, 1, n], [2, 1, 1]])
    slots, firsts, lasts, sources = (np.ascontiguousarray(part) for part in spans)
    numbers = held.view(np.uint16)
    launch = Launch(
        kernel("higgs_means_cuda", "higgs_means_cuda", "1.5bit", head_dim, centred),
        (blocks(n // META_TOKENS, 128 // rotation_lanes(head_dim)), 3 * n_heads),
        [rest, held],
        (
            *(rest, numbers, numbers.strides[0] // 2, numbers.strides[1] // 2),
            *(x, x.strides[0] // 4, x.strides[1] // 4, means, means.strides[0] // 4, search_table(grid)),
            *(slots, n_heads, firsts, lasts, sources, count(2)),
        ),
        n_heads * n * 8 * head_dim,
        n_heads * n // META_TOKENS * (head_dim // 2) * 128 * 5,
    )

    def check() -> float:
        worst = 0.0
        for head in range(n_heads):
            own = held[1, head, 1 : 1 + n_blocks]
            mean = means[1, head].astype(float) if centred else 0
            groups = x[1, head, 2:].astype(float).reshape(-1, META_TOKENS, head_dim) - mean
            expected, scales = encode_ref(groups.mean(axis=1), grid)
            area = own[:, selector.mean_codes(head_dim) :][:, : 4 * head_dim].reshape(n_blocks, -1, 8, 8)
            found = area.transpose(0, 2, 1, 3).reshape(expected.shape).copy()
            behind = np.ascontiguousarray(own[:, selector.mean_scales(head_dim) :]).view(np.float16)
            found_scales = behind[:, :8].reshape(-1).copy()
            if behind[:, 8:].any():
                raise Mismatch("what fills up a block is not zero")
            compare("scales", found_scales, scales.astype(float), rtol=2e-3, atol=1e-6)
            y = groups.mean(axis=1) @ rotation(head_dim).T.astype(float)
            worst = max(worst, _compare_codes(found, expected, y, grid))
            truth = groups - decode_ref(found, found_scales, grid)[:, None]
            worst = max(worst, compare("rest", rest[1, head, 2:], truth, atol=5e-6))
            own[:, selector.mean_codes(head_dim) :] = 0xCD
            rest[1, head, 2:] = np.nan
        untouched("other rows", rest)
        untouched("what lies around", held)
        return worst

    return Case([launch], check)


def residuals(kind: str, head_dim: int, centred: bool, n_blocks: int = 1, n_heads: int = 2) -> Case:
    """Keys of slot 1 behind its first block become residuals, then codes; none of slot 0; a row too many."""
    grids, row_grid, first = selector_grids(SELECTORS[kind]), load_grid("d2n64"), BLOCK_TOKENS
    n = n_blocks * BLOCK_TOKENS
    means = normal(2, n_heads, head_dim)
    keys = normal(2, n_heads, n, head_dim) + means[:, :, None]
    blocks_of_heads = [
        encode_selector_ref(kind, head, *grids, mean if centred else None, "norm")
        for head, mean in zip(keys[1], means[1], strict=True)
    ]
    selectors = RNG.integers(0, 256, (2, n_heads, 1 + n_blocks, blocks_of_heads[0].shape[1]), np.uint8)
    selectors[1, :, 1:] = blocks_of_heads
    x, spans = keys.copy(), np.array([[1, 0, 0], [first, 2, 0], [first + n, 2, n], [0, 0, 0]])
    slots, firsts, lasts, sources = (np.ascontiguousarray(part) for part in spans)
    given = (x, x.strides[0] // 4, x.strides[1] // 4)
    residual = Launch(
        kernel("higgs_residual_cuda", "higgs_residual_cuda", kind, head_dim, centred),
        (blocks(n, 128 // rotation_lanes(head_dim)), 3 * n_heads),
        [x],
        (
            *(*given, selectors.view(np.uint32), selectors.strides[0] // 4, selectors.strides[1] // 4),
            *(*selector_words(SELECTORS[kind]), means if centred else None),
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
            estimates = estimate_ref(kind, blocks_of_heads[head], n, head_dim, *grids)[some]
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
        sized("mean rows", mean_rows, 64, True, 1),
        *(sized(f"residuals of keys, {kind}", residuals, kind, 64, True) for kind in SELECTORS),
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
        for dim, centred in BLOCK_CODES:
            what = f"encode blocks {size} by {dim}, centred {centred}"
            made.append(sized(what, encode, dim, 256, "blocks", size, "norm", centred, False, 8192, 8))
        made.append(sized(f"mean rows {size}", mean_rows, size, True, 128, 8))
        made += [
            sized(f"residuals of keys {kind} {size}", residuals, kind, size, True, 32, 8)
            for kind in SELECTORS
        ]
    return made

"""HIGGS codes of rows on a GPU, emulated, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulated_ops import emulated
from cuda_kernel import blocks, count, emulated_kernel, run_kernel

from yakvrt.higgs_grids import load_grid
from yakvrt.kernels.cuda_kernel import CudaKernel
from yakvrt.kernels.higgs_encode import decode_ref, encode_ref, nearest_ref
from yakvrt.kernels.higgs_encode_cuda import TOGETHER, make_search, rows_of_a_block
from yakvrt.kernels.higgs_layout import SELECTORS, pack_tables
from yakvrt.kernels.higgs_rows import unpack_sixes_ref
from yakvrt.kernels.rotate import rotation, rotation_lanes

RNG = np.random.default_rng(51)
CASES = [
    (2, 256, "bytes", 64, "norm", True, False),
    (2, 256, "bytes", 80, "least_squares", False, True),
    (2, 64, "sixes", 64, "norm", False, False),
    (4, 256, "blocks", 48, "norm", True, False),
    (4, 256, "blocks", 128, "unbiased", True, True),
    (8, 256, "blocks", 48, "unbiased", False, False),
    (8, 256, "blocks", 256, "norm", True, False),
]


def search_table(grid: np.ndarray) -> np.ndarray:
    half = len(grid) // 2
    return pack_tables(grid)[: half * (grid.shape[1] + 1) * 4].view(np.float32)


def first_row(layout: str) -> int:
    """The first row that is encoded: its block ends soon."""
    return 61 if layout == "blocks" else 2


def encode(
    case: tuple[int, int, str, int, str, bool, bool], x: np.ndarray, means: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Rows of slot 1, from place 1 on, none of slot 0: codes and scales as they lie, what lay there."""
    dim, n_points, layout, head_dim, *_ = case
    n_slots, n_heads, n_rows = x.shape[:3]
    first = first_row(layout)
    slots, firsts = np.array([1, 0, 0]), np.array([first, 2, 2])
    lasts, sources = np.array([first + n_rows - 3, 1, n_rows]), np.array([1, 1, 1])
    if layout == "blocks":
        selector = next(s for s in SELECTORS.values() if s.dim == dim and not s.mean_grid)
        held = np.full((n_slots, n_heads, 3 * selector.block_bytes(head_dim)), 0xCD, np.uint8)
        scales, row_words, step = held.view(np.uint16), 0, 0
    else:
        row_words, step = head_dim // dim // 4 + 3, 2
        held = np.full((n_slots, n_heads, n_rows + 4, row_words * 4), 0xCD, np.uint8)
        scales = np.full((n_slots, n_heads, (n_rows + 4) * step), 0xCDCD, np.uint16)
    before = (held.copy(), scales.copy())
    words = held.view(np.uint32)
    kernel = emulated_kernel("higgs_encode_cuda", "higgs_encode_cuda", *case)
    outputs = (words, words.strides[0] // 4, words.strides[1] // 4, row_words)
    outputs += (scales, scales.strides[0] // 2, scales.strides[1] // 2, step)
    given = (x, x.strides[0] // 4, x.strides[1] // 4, means, means.strides[0] // 4)
    grid = (blocks(n_rows, rows_of_a_block(head_dim)), 3 * n_heads)
    spans = (slots, n_heads, firsts, lasts, sources, count(2))
    written = [words] if layout == "blocks" else [words, scales]
    run_kernel(kernel, grid, written, *outputs, *given, search_table(load_grid(f"d{dim}n{n_points}")), *spans)
    return held, scales, before


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_encode(case: tuple[int, int, str, int, str, bool, bool]) -> None:
    dim, n_points, layout, head_dim, rule, centred, signs = case
    grid = load_grid(f"d{dim}n{n_points}")
    n_rows, n_heads = (rows_of_a_block(head_dim) + 5 if n_points == 64 else 6), 2
    x = RNG.standard_normal((2, n_heads, n_rows, head_dim)).astype(np.float32)
    means = RNG.standard_normal((2, n_heads, head_dim)).astype(np.float32)
    x[1, 0, 3] = means[1, 0] if centred else 0
    x[1, 1, 5] *= 1e6
    held, scales, before = encode(case, x, means)
    per_row = head_dim // dim
    tokens = first_row(layout) + np.arange(n_rows - 3)
    mask_held, mask_scales = np.zeros(held.shape, bool), np.zeros(scales.shape, bool)
    for head in range(n_heads):
        rows = x[1, head, 1 : 1 + len(tokens)]
        mean = means[1, head] if centred else None
        expected, expected_scales = encode_ref(rows, grid, mean, rule, signs)
        if layout == "blocks":
            selector = next(s for s in SELECTORS.values() if s.dim == dim and not s.mean_grid)
            block = tokens // 64 * selector.block_bytes(head_dim)
            n_padded = selector.tile_vectors(head_dim) * 4
            k = np.arange(n_padded)
            tile = tokens % 64 // 16 * selector.tile_bytes(head_dim) + tokens % 16 * 4
            at = (block + tile)[:, None] + k // 4 * 64 + k % 4
            mask_held[1, head, at] = True
            found = held[1, head, at]
            assert (found[:, per_row:] == 0).all()
            found = found[:, :per_row]
            at = block // 2 + selector.scales(head_dim) // 2 + tokens % 64
            mask_held[1, head, 2 * at], mask_held[1, head, 2 * at + 1] = True, True
        else:
            n_bytes = per_row if layout == "bytes" else per_row // 4 * 3
            mask_held[1, head, tokens, :n_bytes] = True
            found = held[1, head, tokens, :n_bytes]
            found = found if layout == "bytes" else unpack_sixes_ref(found)
            at = tokens * 2
        mask_scales[1, head, at] = True
        found_scales = scales[1, head, at].view(np.float16)
        np.testing.assert_allclose(
            found_scales.astype(float), expected_scales.astype(float), rtol=2e-3, atol=1e-7
        )
        assert (found_scales[2] == 0) == (head == 0)
        # float32 may prefer another point where two are as near
        differ = found != expected
        assert differ.mean() < 2e-3
        y = (rows.astype(float) - (0 if mean is None else mean)) @ rotation(head_dim, signs).T.astype(float)
        size = np.sqrt((y**2).mean(axis=1, keepdims=True))
        y = (y / np.where(size > 0, size, 1)).reshape(len(rows), per_row, dim)[differ]
        off = [
            ((y - grid[codes.astype(int)]) ** 2).sum(axis=1) for codes in (found[differ], expected[differ])
        ]
        np.testing.assert_allclose(off[0], off[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(held[~mask_held], before[0][~mask_held])
    if layout != "blocks":
        np.testing.assert_array_equal(scales[~mask_scales], before[1][~mask_scales])


def test_equally_near_points_give_the_lowest_code() -> None:
    """Searches among points that float32 holds exactly, of sub-vectors as near to several of them."""
    dim, n_points = 2, 64
    half = RNG.choice([-2, -1, 1, 2], (n_points // 2, dim)).astype(np.float32)
    grid = np.vstack([half, -half])
    stride = 4
    points = np.zeros((n_points // 2, stride), np.float32)
    points[:, :dim], points[:, dim] = half, 0.5 * (half**2).sum(axis=1)
    y = RNG.integers(-3, 4, (32, TOGETHER[dim], dim)).astype(np.float32)
    search = make_search(emulated, dim, n_points, stride)

    def kernel(out: Any, y: Any, points: Any) -> None:
        own, codes, scores = emulated.local_f32(8), emulated.local_i32(4), emulated.local_f32(4)
        for i in range(8):
            own[i] = y[emulated.thread() * 8 + i]
        search(own, points, codes, scores)
        for i in range(4):
            out[emulated.thread() * 4 + i] = codes[i]

    out = np.full(y.shape[:2], -7, np.int32)
    run_kernel(CudaKernel(kernel, "i32* f32* f32*", 32), 1, [out], out, y, points)
    np.testing.assert_array_equal(out, nearest_ref(y, grid))


@pytest.mark.parametrize(
    ("dim", "n_points", "layout", "head_dim", "told"),
    [
        (8, 4096, "bytes", 64, "a grid of 4096 points of dimension 8 has no CUDA kernel"),
        (2, 256, "words", 64, "no layout 'words' of codes: choose one of bytes, sixes, blocks"),
        (2, 256, "sixes", 64, "codes of 256 points take more than 6 bits"),
        (8, 256, "bytes", 48, "rows of 6 codes are no whole words"),
        (2, 256, "bytes", 72, "a head dimension of 72 has no rotation"),
    ],
)
def test_what_cannot_be_encoded_is_refused(
    dim: int, n_points: int, layout: str, head_dim: int, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        emulated_kernel(
            "higgs_encode_cuda", "higgs_encode_cuda", dim, n_points, layout, head_dim, "norm", False, False
        )


@pytest.mark.parametrize(
    ("dim", "head_dim", "rotated", "centred", "signs"),
    [(2, 64, True, False, False), (2, 80, False, True, True), (4, 128, False, False, False)],
)
def test_decode(dim: int, head_dim: int, rotated: bool, centred: bool, signs: bool) -> None:
    n_slots, n_heads, n_rows, row_words, grid = 2, 2, 40, head_dim // dim // 4 + 1, load_grid(f"d{dim}n256")
    codes = RNG.integers(0, 256, (n_slots, n_heads, n_rows, row_words * 4)).astype(np.uint8)
    scales = RNG.random((n_slots, n_heads, n_rows, 2)).astype(np.float16)
    means = RNG.standard_normal((n_slots, n_heads, head_dim)).astype(np.float32)
    out = np.full((n_slots, n_heads, n_rows, head_dim), np.nan, np.float32)
    words, halves = codes.view(np.uint32), scales.view(np.uint16)
    arguments = (out, out.strides[0] // 4, out.strides[1] // 4)
    arguments += (words, words.strides[0] // 4, words.strides[1] // 4, row_words)
    arguments += (halves, halves.strides[0] // 2, halves.strides[1] // 2, 2, means, n_heads * head_dim)
    spans = (np.array([1, 0, 0]), n_heads, np.array([3, 7, 0]), np.array([39, 7, 9]), np.array([1, 0, 0]))
    kernel = emulated_kernel(
        "higgs_decode_cuda", "higgs_decode_cuda", dim, 256, head_dim, rotated, centred, signs
    )
    grid_size = (blocks(36, 128 // rotation_lanes(head_dim)), 3 * n_heads)
    run_kernel(kernel, grid_size, [out], *arguments, search_table(grid), *spans, count(2))
    own = codes[1, :, 3:39, : head_dim // dim]
    expected = decode_ref(own, scales[1, :, 3:39, 0], grid, rotated=rotated, signs=signs)
    expected = expected + (means[1][:, None] if centred else 0)
    np.testing.assert_allclose(out[1, :, 1:37], expected, rtol=0, atol=1e-5)
    assert np.isnan(out[0]).all()
    assert np.isnan(out[1, :, [0, 37, 38, 39]]).all()

"""YAKV's attention to selected 4-bit rows on a GPU, emulated, against the decoded rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cuda_kernel import count, emulated_kernel, poisoned, run_kernel

from yakvrt.higgs_grids import load_grid
from yakvrt.kernels.attend_fragments import head_blocks
from yakvrt.kernels.higgs_layout import row_bytes
from yakvrt.kernels.higgs_rows import decode_rows_ref
from yakvrt.kernels.merge_partials import merge_partials_ref

RNG = np.random.default_rng(31)


def selected_rows_ref(
    q: np.ndarray, codes: np.ndarray, scales: np.ndarray, mean: np.ndarray | None, ids: np.ndarray
) -> np.ndarray:
    """One KV head in float64. Shapes: q [G, D], codes [n, bytes], scales [n, 2], ids [m] -> [G, D]."""
    head_dim, grid = q.shape[1], load_grid("d2n256")
    k, v = (
        decode_rows_ref("q4", part[ids], scales[ids, i], grid, rotated=False)
        for i, part in enumerate((codes[:, : head_dim // 2], codes[:, head_dim // 2 : head_dim]))
    )
    logits = q.astype(np.float64) @ (k if mean is None else k + mean).T / math.sqrt(head_dim)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights @ v / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("group", "head_dim", "centred", "counts", "n_splits"),
    [
        (4, 128, True, (1, 37), 1),
        (2, 64, True, (130, 0), 2),
        (9, 64, False, (17,), 1),
        (8, 256, True, (20,), 1),
        (1, 192, True, (33,), 1),
    ],
)
def test_yakv_attend(
    group: int, head_dim: int, centred: bool, counts: tuple[int, ...], n_splits: int
) -> None:
    n_rows, n_heads, first, n_places = len(counts), 1 if len(counts) == 1 else 2, 2, 150
    n_slots, n_partials = n_rows + 1, first + n_splits
    width, stride = n_heads * group * head_dim, row_bytes(head_dim, "q4", "q4")
    codes = RNG.integers(0, 256, (n_slots, n_heads, n_places, stride)).astype(np.uint8)
    scales = RNG.uniform(0.02, 3, (n_slots, n_heads, n_places, 2)).astype(np.float16)
    means = RNG.standard_normal((n_slots, n_heads, head_dim)).astype(np.float32)
    book = load_grid("d2n256").astype(np.float16).reshape(-1).view(np.uint32)
    q = RNG.standard_normal((n_rows + 1, width + 4)).astype(np.float32)
    slots = np.array([*range(n_rows, 0, -1), 99], np.int64)
    n_selected = np.repeat(np.array([*counts, 10**6], np.int64), n_heads)
    places = np.full((n_rows + 1, n_heads, max(counts) + 2), 10**6, np.int32)
    for row, n in enumerate(counts):
        for head in range(n_heads):
            places[row, head, :n] = RNG.permutation(n_places)[:n]
    sums = poisoned(n_rows + 1, n_heads * group, n_partials, head_dim)
    stats = poisoned(n_rows + 1, n_heads * group, n_partials, 2)
    row_words = n_places * stride // 4
    run_kernel(
        emulated_kernel("yakv_attend_cuda", "yakv_attend_cuda", head_dim, "q4", "q4", centred),
        (n_heads * n_splits * head_blocks(group), n_rows + 1),
        [sums, stats],
        *(sums, stats, first, n_partials, n_splits, q, width + 4),
        *(codes.reshape(-1).view(np.uint32), n_heads * row_words, row_words),
        *(scales.reshape(-1).view(np.uint32), n_heads * n_places, n_places),
        *(book, means if centred else None, n_heads * head_dim, head_dim),
        *(places, places.shape[2], n_selected, slots, count(n_rows), n_heads, group, 1 / math.sqrt(head_dim)),
    )
    assert np.isnan(sums[n_rows:]).all()
    assert np.isnan(stats[:, :, :first]).all()
    for row, n in enumerate(counts):
        if n == 0:
            assert (stats[row, :, first:, 1] == 0).all()
            continue
        found = merge_partials_ref(sums[row : row + 1, :, first:], stats[row : row + 1, :, first:])[0]
        for head in range(n_heads):
            own = slice(head * group, (head + 1) * group)
            heads, slot = q[row, :width].reshape(-1, head_dim)[own], slots[row]
            mean = means[slot, head] if centred else None
            ids = places[row, head, :n]
            expected = selected_rows_ref(heads, codes[slot, head], scales[slot, head], mean, ids)
            np.testing.assert_allclose(found[own], expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ((128, "q3", "q4", True), "use q4"),
        ((112, "q4", "q4", True), "64, 128, 192, 256"),
    ],
)
def test_what_has_no_kernel_is_refused(parameters: tuple[int, str, str, bool], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        emulated_kernel("yakv_attend_cuda", "yakv_attend_cuda", *parameters)

"""Scores straight from selector codes on a GPU, emulated, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_kernel import blocks, count, emulated_kernel, poisoned, run_kernel

from yakvrt.higgs_grids import load_grid
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS, SELECTORS, byte_grid
from yakvrt.kernels.higgs_query_cuda import query_words
from yakvrt.kernels.higgs_score import score_ref
from yakvrt.kernels.higgs_selector import encode_selector_ref
from yakvrt.kernels.rotate import rotation, rotation_lanes

RNG = np.random.default_rng(14)
CASES = [
    ("2bit", 48, 1, True, False),
    ("2bit", 64, 3, False, False),
    ("2bit", 128, 8, True, True),
    ("2bit", 256, 16, False, False),
    ("1bit", 48, 3, True, False),
    ("1bit", 64, 9, True, False),
]


def clear_queries(shape: tuple[int, int, int], signs: bool) -> np.ndarray:
    """Random queries no coordinate of which lies just between two integers once rotated and scaled."""
    q = np.empty(shape, np.float32)
    matrix = rotation(shape[2], signs).T.astype(float)
    for index in np.ndindex(shape[:2]):
        distance = np.zeros(1)  # from the nearest half
        while distance.min() < 1e-4:
            q[index] = RNG.standard_normal(shape[2]) * 3
            y = q[index].astype(float) @ matrix
            distance = np.abs(y / np.abs(y).max() * 127 % 1 - 0.5)
    return q


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_score(case: tuple[str, int, int, bool, bool]) -> None:
    kind, head_dim, group, centred, signs = case
    grid = load_grid(SELECTORS[kind].grid)
    n_kv_heads, n_slots, n_blocks, slots = 2, 3, 4, np.array([2, 0, 1])
    lengths = np.array([130, 64, 1, 0, 99, 99])  # of a row beyond the last as well
    keys = RNG.standard_normal((n_slots, n_kv_heads, n_blocks * BLOCK_TOKENS, head_dim))
    codes = [[encode_selector_ref(kind, head, grid, signs=signs) for head in slot] for slot in keys]
    held = np.ascontiguousarray(codes)
    means = RNG.standard_normal((n_slots, n_kv_heads, head_dim)).astype(np.float32)
    n_rows, n_heads, factor = 2, n_kv_heads * group, 0.37
    q = clear_queries((n_rows + 1, n_heads, head_dim), signs)
    q[0, 0] = 0
    table, step = byte_grid(grid)

    n_words = query_words(kind, head_dim)
    queries = np.full((n_rows + 1, n_heads, n_words), 0xCDCDCDCD, np.uint32)
    records = poisoned(n_rows + 1, n_heads, 4)
    query = emulated_kernel("higgs_query_cuda", "higgs_query_cuda", kind, head_dim, centred, signs)
    arguments = (q, n_heads * head_dim, means if centred else None, n_kv_heads * head_dim, slots)
    grid_size = blocks((n_rows + 1) * n_heads, 128 // rotation_lanes(head_dim))
    sizes = (n_heads, group, factor, step, count(n_rows))
    run_kernel(query, grid_size, [queries, records], queries, records, *arguments, *sizes)
    assert (queries[n_rows] == 0xCDCDCDCD).all()
    assert np.isnan(records[n_rows]).all()

    n_segments, n_shares = (n_rows + 1) * n_kv_heads, 2
    logits = poisoned(n_segments, group, n_blocks * BLOCK_TOKENS)
    stats = poisoned(n_segments, group, n_shares + 2, 2)
    words = table.view(np.uint32).reshape(-1)
    strides = [stride // 4 for stride in held.strides[:2]]
    score = emulated_kernel("higgs_score_cuda", "higgs_score_cuda", kind, head_dim, group)
    outputs = (logits, logits.shape[2], stats, n_shares + 2, 1)
    inputs = (queries, records, held.reshape(-1).view(np.uint32), *strides, slots, n_kv_heads, lengths, words)
    run_kernel(score, (n_shares, n_segments), [logits, stats], *outputs, *inputs, count(n_rows))

    for segment in range(n_rows * n_kv_heads):
        row, head = divmod(segment, n_kv_heads)
        slot, n = slots[row], int(lengths[segment])
        n_all = -(-n // BLOCK_TOKENS) * BLOCK_TOKENS
        own = q[row, head * group : (head + 1) * group]
        mean = means[slot, head] if centred else None
        expected = score_ref(
            kind, own, held[slot, head], n, factor, grid, mean=mean, signs=signs, as_int8=True
        )[:, :n_all]
        found = logits[segment, :, :n_all]
        assert (found[:, n:] == -np.inf).all()
        np.testing.assert_allclose(found[:, :n], expected[:, :n], rtol=0, atol=2e-5 * head_dim**0.5)
        assert np.isnan(logits[segment, :, n_all:]).all()
        for query_stats, row_logits in zip(stats[segment, :, 1:-1], found.astype(float), strict=True):
            largest = max(row_logits.max(initial=-1e30), -1e30)
            assert query_stats[:, 0].max() == np.float32(largest)
            total = (np.exp(query_stats[:, 0] - largest) * query_stats[:, 1]).sum()
            np.testing.assert_allclose(total, np.exp(row_logits - largest).sum(), rtol=1e-5)
        assert np.isnan(stats[segment, :, [0, -1]]).all()
    assert np.isnan(logits[n_rows * n_kv_heads :]).all()
    assert np.isnan(stats[n_rows * n_kv_heads :]).all()


def test_what_is_not_supported_is_named() -> None:
    with pytest.raises(ValueError, match=r"selector '1\.5bit' has no CUDA kernel: choose one of 2bit, 1bit"):
        emulated_kernel("higgs_score_cuda", "higgs_score_cuda", "1.5bit", 128, 4)
    with pytest.raises(ValueError, match="a group of 17 queries has no CUDA kernel: 1 to 16 are supported"):
        emulated_kernel("higgs_score_cuda", "higgs_score_cuda", "2bit", 128, 17)

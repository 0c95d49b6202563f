"""The normaliser and the tail of a YAKV step on a GPU, emulated, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_kernel import blocks, count, emulated_kernel, poisoned, run_kernel

from yakvrt.kernels.yakv_tail import tail_ref
from yakvrt.kernels.yakv_tail_cuda import BLOCKS

RNG = np.random.default_rng(61)


@pytest.mark.parametrize(("n_queries", "n_parts"), [(1, 1), (5, 40), (9, 3)])
def test_log_sum_exp(n_queries: int, n_parts: int) -> None:
    stats = (RNG.standard_normal((n_queries + 1, n_parts, 2)) * 20).astype(np.float32)
    stats[:, :, 1] = RNG.random((n_queries + 1, n_parts)) + 1
    stats[0, 1:] = [-1e30, 0]
    lse, wide = poisoned(n_queries + 4), stats.astype(float)
    kernel = emulated_kernel("yakv_tail_cuda", "log_sum_exp_cuda")
    run_kernel(kernel, blocks(n_queries + 1, 4), [lse], lse, stats, n_parts, count(n_queries))
    largest = wide[:, :, 0].max(axis=1)
    total = (np.exp(wide[:, :, 0] - largest[:, None]) * wide[:, :, 1]).sum(axis=1)
    np.testing.assert_allclose(lse[:n_queries], (largest + np.log(total))[:n_queries], rtol=1e-6, atol=1e-6)
    assert np.isnan(lse[n_queries:]).all()


@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (3, 80), (8, 128), (16, 256)])
def test_tail(group: int, head_dim: int) -> None:
    n_heads, n_rows, n_parts, n_slots = 2, 2, 2, 3
    n_most = (BLOCKS + 1) * 64
    lengths, slots = np.array([n_most if group < 16 else 256, 0, 128, 192, 64, 64]), np.array([2, 0, 1])
    counts = np.array([200, 0, 128, 1, 5, 5])
    n_segments = len(lengths)
    logits = (RNG.standard_normal((n_segments, group, n_most)) * 3).astype(np.float32)
    lse = (logits.max(axis=2) + 2).astype(np.float32)
    ids = np.full((n_segments, 1000), -7, np.int32)
    for row, n, k in zip(ids, lengths, counts, strict=True):
        row[:k] = np.sort(RNG.choice(n, k, replace=False))
    values = RNG.standard_normal((n_slots, n_heads, n_most // 64, head_dim)).astype(np.float16)
    words = values.reshape(n_slots, n_heads, -1).view(np.uint32)
    sums, totals = poisoned(n_segments, group, n_parts, head_dim), poisoned(n_segments, group, n_parts)
    kernel = emulated_kernel("yakv_tail_cuda", "yakv_tail_cuda", group, head_dim)
    arguments = (logits, n_most, lse, lengths, ids, ids.shape[1], counts)
    pools = (words, words.strides[0] // 4, words.strides[1] // 4, slots, n_heads, 0.25, count(n_rows))
    run_kernel(kernel, (n_parts, n_segments), [sums, totals], sums, totals, n_parts, *arguments, *pools)
    for segment in range(n_rows * n_heads):
        row, head = divmod(segment, n_heads)
        n, chosen = lengths[segment], ids[segment, : counts[segment]]
        own = values[slots[row], head, : n // 64]
        expected = tail_ref(logits[segment, :, :n], lse[segment], chosen, own, 0.25)
        np.testing.assert_allclose(sums[segment].sum(axis=1), expected[0], rtol=0, atol=1e-5)
        np.testing.assert_allclose(totals[segment].sum(axis=1), expected[1], rtol=2e-5, atol=1e-7)
    assert np.isnan(sums[n_rows * n_heads :]).all()
    assert np.isnan(totals[n_rows * n_heads :]).all()


def test_what_is_not_supported_is_named() -> None:
    with pytest.raises(ValueError, match="a head dimension of 72 has no CUDA kernel: supported are 48, 64"):
        emulated_kernel("yakv_tail_cuda", "yakv_tail_cuda", 4, 72)
    with pytest.raises(ValueError, match="a group of 17 queries has no CUDA kernel"):
        emulated_kernel("yakv_tail_cuda", "yakv_tail_cuda", 17, 64)

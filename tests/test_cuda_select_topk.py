"""Ranking and selecting tokens on a GPU, emulated, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_kernel import blocks, count, emulated_kernel, run_kernel

from yakvrt.kernels.select_topk import RULES, select_topk_ref, weights_ref
from yakvrt.kernels.select_topk_cuda import candidates_stride

RNG = np.random.default_rng(31)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("group", [1, 3, 16])
def test_rank(rule: str, group: int) -> None:
    lengths, width = np.array([1, 1030, 0, 512]), 1032
    logits = (RNG.standard_normal((4 * group, width)) * 5).astype(np.float32)
    logits[0, :3] = -np.inf
    lse = (logits.max(axis=1) + RNG.random(4 * group)).astype(np.float32)
    weights = np.full((4, width + 4), np.nan, np.float32)
    kernel = emulated_kernel("select_topk_cuda", "rank_cuda", rule, group)
    arguments = (width + 4, logits, width, lse, lengths)
    run_kernel(kernel, (blocks(width, 1024), 4), [weights], weights, *arguments)
    atol = 2e-6 if rule == "mean" else 1e-37
    for segment, n in enumerate(lengths):
        own = slice(segment * group, (segment + 1) * group)
        expected = weights_ref(logits[own, :n], lse[own], rule)
        np.testing.assert_allclose(weights[segment, :n], expected, rtol=4e-6, atol=atol)
        assert np.isnan(weights[segment, -(-n // 4) * 4 :]).all()


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="no ranking rule 'median': choose one of sum, max, mean"):
        emulated_kernel("select_topk_cuda", "rank_cuda", "median", 2)


def selected(segments: list[np.ndarray], budgets: list[int]) -> list[np.ndarray]:
    """The ids that the kernel selects of segments in rows of one length, poisoned behind them."""
    n, longest = len(segments), max(map(len, segments))
    width = -(-longest // 4) * 4
    weights = np.full((n + 1, width), np.inf, np.float32)
    for row, segment in zip(weights, segments, strict=False):
        row[: len(segment)] = segment
    stride = candidates_stride(longest)
    ids, counts = np.full((n + 1, longest + 3), -7, np.int32), np.full(n + 1, -7)
    candidates = np.full((n + 1, stride), 0xCDCDCDCD, np.uint32)
    kernel = emulated_kernel("select_topk_cuda", "select_topk_cuda")
    arguments = (counts, weights, width, np.array([*map(len, segments), 5]), np.array([*budgets, 2]))
    run_kernel(kernel, n + 1, [ids, counts], ids, ids.shape[1], *arguments, candidates, stride, count(n))
    assert (ids[n] == -7).all()
    assert counts[n] == -7
    for row, found in zip(ids, counts[:n], strict=False):
        assert (row[found:] == -7).all()
    return [row[:found] for row, found in zip(ids, counts[:n], strict=False)]


def check(segments: list[np.ndarray], budgets: list[int]) -> None:
    for segment, k, found in zip(segments, budgets, selected(segments, budgets), strict=True):
        np.testing.assert_array_equal(found, select_topk_ref(segment, k))


def test_select_of_odd_lengths_and_budgets() -> None:
    lengths, budgets = [1, 5, 129, 4097, 3, 0, 700], [1, 3, 1, 300, 9, 4, 0]
    check([RNG.random(n).astype(np.float32) ** 8 for n in lengths], budgets)


def test_select_of_equal_weights() -> None:
    n = 600
    few = RNG.integers(-2, 3, n).astype(np.float32)
    few[few == 0] *= RNG.choice([-1, 1], (few == 0).sum())
    tails = np.full(n, -np.inf, np.float32)
    tails[[3, 400, 599]] = 0
    check([np.zeros(n, np.float32), few, few, tails, tails], [n - 1, 310, 7, 2, 50])


def test_select_of_weights_that_differ_in_their_last_bits() -> None:
    bits = RNG.integers(0x3F000000, 0x3F000C00, 900).astype(np.uint32)
    near = bits.view(np.float32)
    check([near, -near], [450, 33])

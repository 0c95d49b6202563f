"""Ranking and selecting tokens on a GPU, emulated, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.selection import rank, select_topk
from cuda_kernel import emulated_kernel, solve

from yakvrt.kernels.select_topk import RULES

RNG = np.random.default_rng(31)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("group", [1, 3, 16])
def test_rank(rule: str, group: int) -> None:
    solve(rank(rule, group, [1, 1030, 0, 512]))


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="no ranking rule 'median': choose one of sum, max, mean"):
        emulated_kernel("select_topk_cuda", "rank_cuda", "median", 2)


def test_select_of_odd_lengths_and_budgets() -> None:
    lengths, budgets = [1, 5, 129, 4097, 3, 0, 700], [1, 3, 1, 300, 9, 4, 0]
    solve(select_topk([RNG.random(n).astype(np.float32) ** 8 for n in lengths], budgets))


def test_select_of_equal_weights() -> None:
    n = 600
    few = RNG.integers(-2, 3, n).astype(np.float32)
    few[few == 0] *= RNG.choice([-1, 1], (few == 0).sum())
    tails = np.full(n, -np.inf, np.float32)
    tails[[3, 400, 599]] = 0
    solve(select_topk([np.zeros(n, np.float32), few, few, tails, tails], [n - 1, 310, 7, 2, 50]))


def test_select_of_weights_that_differ_in_their_last_bits() -> None:
    bits = RNG.integers(0x3F000000, 0x3F000C00, 900).astype(np.uint32)
    near = bits.view(np.float32)
    solve(select_topk([near, -near], [450, 33]))

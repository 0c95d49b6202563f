"""The normaliser and the tail of a YAKV step on a GPU, emulated, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.selection import log_sum_exp, tail
from cuda_kernel import emulated_kernel, solve

from yakvrt.kernels.yakv_tail_cuda import BLOCKS

RNG = np.random.default_rng(61)


@pytest.mark.parametrize(("n_queries", "n_parts"), [(1, 1), (5, 40), (9, 3)])
def test_log_sum_exp(n_queries: int, n_parts: int) -> None:
    solve(log_sum_exp(n_queries, n_parts))


@pytest.mark.parametrize(("group", "head_dim"), [(1, 64), (3, 80), (8, 128), (16, 256)])
def test_tail(group: int, head_dim: int) -> None:
    most = (BLOCKS + 1) * 64 if group < 16 else 256
    solve(tail(group, head_dim, [most, 0, 128, 192, 64, 64], [200, 0, 128, 1, 5, 5]))


def test_what_is_not_supported_is_named() -> None:
    with pytest.raises(ValueError, match="a head dimension of 72 has no CUDA kernel: supported are 48, 64"):
        emulated_kernel("yakv_tail_cuda", "yakv_tail_cuda", 4, 72)
    with pytest.raises(ValueError, match="a group of 17 queries has no CUDA kernel"):
        emulated_kernel("yakv_tail_cuda", "yakv_tail_cuda", 17, 64)

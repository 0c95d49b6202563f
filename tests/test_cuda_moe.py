"""Mixture of experts on a GPU, emulated: routing, packs, grouped matmuls and their sum, against numpy."""

from __future__ import annotations

import pytest
from cuda_cases.moe import combine, dispatch, grouped_matmul, route
from cuda_kernel import solve


@pytest.mark.parametrize(("n_rows", "n_experts", "n_used"), [(1, 8, 2), (3, 128, 8), (2, 5, 5), (1, 512, 40)])
@pytest.mark.parametrize("renormalise", [False, True])
def test_route(n_rows: int, n_experts: int, n_used: int, renormalise: bool) -> None:
    solve(route(n_rows, n_experts, n_used, renormalise))


@pytest.mark.parametrize("n_tokens", [1, 4])
@pytest.mark.parametrize(("n_rows", "n_experts", "n_used"), [(1, 3, 2), (70, 5, 4), (3, 2, 2)])
def test_dispatch(n_tokens: int, n_rows: int, n_experts: int, n_used: int) -> None:
    solve(dispatch(n_rows, n_experts, n_used, n_tokens))


def test_combine() -> None:
    solve(combine(3, 3, 520))


@pytest.mark.parametrize("pack", [2, 16])
@pytest.mark.parametrize("role", ["gate", "up", "down"])
@pytest.mark.parametrize("name", ["BF16", "Q4_K", "Q8_0"])
def test_grouped_matmul(name: str, role: str, pack: int) -> None:
    n_cols = 256 if name == "Q4_K" else 64
    solve(grouped_matmul(name, pack, pack == 16, 5, 4, 2, 6, n_cols, role))

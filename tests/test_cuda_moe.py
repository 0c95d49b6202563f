"""Mixture of experts on a GPU, emulated: routing, packs, grouped matmuls and their sum, against numpy."""

from __future__ import annotations

import pytest
from cuda_cases.moe import combine, dispatch, grouped_matmul, route
from cuda_kernel import solve

from yakvrt.cuda.kernel_choice import MOST_DECODE_ROWS, PREFILL_TILES, attends_on_tensor_cores, expert_pack


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


def test_packs_have_as_many_rows_as_a_kernel_of_their_formats() -> None:
    pairs = 4096 * 8
    assert expert_pack(pairs, 128, {"Q4_K", "Q6_K"}) == PREFILL_TILES[-1]
    assert expert_pack(pairs, 128, {"Q4_K", "F32"}) == MOST_DECODE_ROWS
    assert expert_pack(8, 128, {"Q4_K"}) == 1
    assert attends_on_tensor_cores(128, "bf16", 128)
    assert not attends_on_tensor_cores(128, "bf16", 129)  # its heads do not fit a tile

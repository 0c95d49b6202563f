"""Proxies of low rank on a GPU, emulated, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.factors import factor_descend, factor_resident, factor_solve
from cuda_kernel import emulated_kernel, solve

from yakvrt.kernels.factor_descend import factor_descend_ref


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("head_dim", [16, 80])
def test_resident_keys(head_dim: int, kind: str) -> None:
    """No key, those of the ring alone, a ring that has wrapped around, and more than fit at once."""
    solve(factor_resident(head_dim, kind, 5, [0, 0, 3, 40], [0, 2, 9, 60], 4))


@pytest.mark.parametrize(("rank", "ring_len"), [(1, 1), (3, 40), (20, 2)])
def test_resident_keys_of_ranks(rank: int, ring_len: int) -> None:
    solve(factor_resident(16, "bf16", rank, [4], [50], ring_len, 1))


@pytest.mark.parametrize("rank", [1, 2, 5, 16, 33])
@pytest.mark.parametrize("sharing", [1, 3])
def test_proxies(rank: int, sharing: int) -> None:
    solve(factor_solve(48, rank, 1, sharing))


def test_proxies_before_a_prompt_are_nothing() -> None:
    solve(factor_solve(16, 4, 1, scale=0.0))


@pytest.mark.parametrize(("head_dim", "rank"), [(16, 1), (80, 5), (256, 40)])
def test_factors_follow(head_dim: int, rank: int) -> None:
    solve(factor_descend(head_dim, rank, 2))


def test_a_step_brings_the_product_closer() -> None:
    rng = np.random.default_rng(2)
    b, h, x = (rng.standard_normal((3, *shape), np.float32) for shape in ((4, 16), (1, 4), (1, 16)))
    off = np.linalg.norm(h @ factor_descend_ref(b, h, x) - x, axis=(1, 2))
    assert (off < 1e-4 * np.linalg.norm(h @ b - x, axis=(1, 2))).all()


def test_rows_without_a_kernel_are_refused() -> None:
    with pytest.raises(ValueError, match="heads of 65 numbers: use even ones up to 256"):
        emulated_kernel("factor_resident", "factor_resident_cuda", 65, "bf16")

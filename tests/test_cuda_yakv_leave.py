"""The window of YAKV slots on a GPU, emulated, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.window import leave, lengths
from cuda_kernel import emulated_kernel, solve

from yakvrt.kernels.yakv_layout import Budget
from yakvrt.kernels.yakv_leave_cuda import yakv_lengths_ref


def test_lengths_are_what_the_layout_says() -> None:
    found = yakv_lengths_ref(np.array([0, 83, 147, 211, 9999]), 4, 80, Budget(1 << 18, 5, 200))
    indexed, selected, firsts, lasts = found
    assert indexed.tolist() == [0, 0, 0, 64, 9856]
    assert selected.tolist() == [0, 0, 0, 53, 2500]
    assert (lasts - firsts).tolist() == [0, 0, 64, 64, 0]


@pytest.mark.parametrize("budget", [Budget(1 << 15, 1, 0), Budget(0, 100, 300), Budget(1 << 20, 1, 0)])
def test_lengths(budget: Budget) -> None:
    solve(lengths(budget))


@pytest.mark.parametrize(("head_dim", "kind"), [(64, "bf16"), (128, "f16"), (48, "bf16"), (256, "f16")])
@pytest.mark.parametrize("centred", [True, False])
def test_leave(head_dim: int, kind: str, centred: bool) -> None:
    solve(leave(head_dim, kind, centred))


def test_heads_without_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="even ones from 16 to 256"):
        emulated_kernel("yakv_leave_cuda", "yakv_leave_cuda", 65, "bf16", True)

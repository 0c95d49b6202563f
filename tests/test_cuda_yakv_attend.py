"""YAKV's attention to selected rows of codes on a GPU, emulated, against the decoded rows."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.yakv import attend
from cuda_kernel import emulated_kernel, solve

RNG = np.random.default_rng(31)


@pytest.mark.parametrize(
    ("k_format", "group", "head_dim", "centred", "counts", "n_splits"),
    [
        ("q4", 4, 128, True, (1, 37), 1),
        ("q4", 2, 64, True, (130, 0), 2),
        ("q4", 9, 64, False, (17,), 1),
        ("q4", 8, 256, True, (20,), 1),
        ("q4", 1, 192, True, (33,), 1),
        ("r3", 4, 128, True, (1, 113), 1),
        ("r3", 2, 64, True, (130, 0), 2),
        ("r3", 9, 64, False, (17,), 1),
        ("r3", 7, 256, True, (20,), 1),
        ("r3", 1, 192, True, (33,), 1),
    ],
)
def test_yakv_attend(
    k_format: str, group: int, head_dim: int, centred: bool, counts: tuple[int, ...], n_splits: int
) -> None:
    solve(attend(k_format, group, head_dim, centred, list(counts), n_splits, 1 if len(counts) == 1 else 2))


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ((128, "q3", "q4", True), "use q4 or r3 for keys, q4 for values"),
        ((112, "q4", "q4", True), "64, 128, 192, 256"),
    ],
)
def test_what_has_no_kernel_is_refused(parameters: tuple[int, str, str, bool], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        emulated_kernel("yakv_attend_cuda", "yakv_attend_cuda", *parameters)

"""Scores straight from selector codes on a GPU, emulated, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.scores import score
from cuda_kernel import emulated_kernel, solve

RNG = np.random.default_rng(14)
CASES = [
    ("2bit", 48, 1, True, False),
    ("2bit", 64, 3, False, False),
    ("2bit", 128, 8, True, True),
    ("2bit", 256, 16, False, False),
    ("1bit", 48, 3, True, False),
    ("1bit", 64, 9, True, False),
    ("1.5bit", 48, 3, True, True),
    ("1.5bit", 64, 4, False, False),
    ("1.5bit", 128, 9, True, False),
    ("1.5bit", 192, 1, True, False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_score(case: tuple[str, int, int, bool, bool]) -> None:
    solve(score(*case, [130, 64, 1, 0, 99, 99]))


def test_what_is_not_supported_is_named() -> None:
    with pytest.raises(ValueError, match="a group of 17 queries has no CUDA kernel: 1 to 16 are supported"):
        emulated_kernel("higgs_score_cuda", "higgs_score_cuda", "2bit", 128, 17)

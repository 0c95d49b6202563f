"""The cache of host rows on a GPU, emulated: places as the truth gives them, copies of what is missing."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.case import Case
from cuda_cases.yakv import Directories, gather
from cuda_kernel import emulated_kernel, solve

RNG = np.random.default_rng(41)


def test_steps_hit_replace_and_forget_as_the_truth_does() -> None:
    heads = Directories(n_slots=3, n_heads=2, n_places=37, n_rows=90)
    launches = [heads.forget([1], 3, 60)]  # of an empty cache
    for step in range(5):
        launches += [heads.fetch([2, 0], 37), heads.fetch([0], 12)]
        if step % 2:
            launches += [heads.forget([2], step * 7, step * 7 + 64), heads.forget([0, 1], 64, 80)]
    solve(Case(launches, heads.check))


def test_more_places_than_threads() -> None:
    heads = Directories(n_slots=1, n_heads=1, n_places=700, n_rows=1400)
    launches = [
        heads.fetch([0], 650),
        heads.fetch([0], 600),
        heads.forget([0], 10, 900),
        heads.fetch([0], 700),
    ]
    solve(Case(launches, heads.check))


@pytest.mark.parametrize(("row_bytes", "n_blocks"), [(64, 1), (112, 3), (512, 2)])
def test_gather(row_bytes: int, n_blocks: int) -> None:
    solve(gather(row_bytes, 3, 2, 150, 70, [70, 0, 1, 33, 5, 5], n_blocks))


@pytest.mark.parametrize("row_bytes", [8, 100, 2048])
def test_rows_that_cannot_be_gathered_are_refused(row_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"rows of {row_bytes} bytes cannot be gathered: use a multiple of"):
        emulated_kernel("yakv_gather_cuda", "yakv_gather_cuda", row_bytes)

"""What steps that read the best pages do beside scoring, emulated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_cases.page_rows import (
    LRQK,
    ORACLE,
    QUEST,
    SINKS,
    page_count,
    page_gather,
    page_lengths,
    page_near,
    page_project,
    page_recall,
)
from cuda_kernel import count, emulated_kernel, poisoned, run_kernel, solve

from yakvrt.kernels.page_layout import PageShape, chosen_end

SHAPES = {"quest": QUEST, "oracle": ORACLE, "sinks": SINKS, "lrqk": LRQK}


@pytest.mark.parametrize("name", SHAPES)
def test_page_lengths(name: str) -> None:
    """Slots shorter than what is always read, with one page more, and long ones; budgets below and above."""
    shape = SHAPES[name]
    first = shape.n_sinks + shape.window + shape.page + 1  # tokens with one page to choose from
    lengths = [1, first - 1, first, first + shape.page, 1000, 130]
    solve(page_lengths(shape, lengths, [3, 1, 1, 1, 5, 10**6], 3))
    solve(page_lengths(shape, lengths, [3] * 6, 1, places=2))


@pytest.mark.parametrize("n", [0, 1, 17, 40])
def test_page_count(n: int) -> None:
    solve(page_count(n, 3, 16))


@pytest.mark.parametrize(("head_dim", "n_channels", "group"), [(16, 8, 1), (80, 16, 4), (128, 72, 2)])
def test_page_project(head_dim: int, n_channels: int, group: int) -> None:
    solve(page_project(head_dim, n_channels, 2, group, 2))


@pytest.mark.parametrize("alpha", [0.0, 1.5, 1e9])
def test_page_near(alpha: float) -> None:
    solve(page_near([0, 1, 5, 300, 40], 2, 3, alpha))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_page_gather(name: str, cached: bool) -> None:
    for grid, kind in ((1, "f32"), (3, "bf16")):
        shape = replace(SHAPES[name], head_dim=16, kind=kind)
        solve(page_gather(shape, [1, 9, shape.ring_places + 40, 133], 3, 2, grid, cached))


@pytest.mark.parametrize(
    ("sizes", "budget", "n_places"),
    [([0, 1, 2], 2, [1, 1, 2]), ([9, 30, 30, 6], 5, [5, 5, 12, 9]), ([300], 270, [290])],
)
def test_page_recall(sizes: list[int], budget: int, n_places: list[int]) -> None:
    """Nothing to choose, everything, a cache as large as what is wanted and larger, more than threads."""
    solve(page_recall(sizes, budget, n_places, 2))


@pytest.mark.parametrize(
    ("held", "weight", "least"),
    [([5, 5, 5, 5], 0.0, 0), ([1, 5, 5, -1], 0.0, 1), ([4, 6, 7, 0], np.nan, 0), ([4, 6, 7, 0], np.inf, 0)],
)
def test_page_recall_stays_within_its_places(held: list[int], weight: float, least: int) -> None:
    """Where fewer places can give way than ids are missing: what files and broken weights may say."""
    recalled, ids = np.array([[held]], np.int32), np.array([[1, 2, 3, 5]], np.int32)
    fresh, n_fresh, n_filled = poisoned(1, 4, dtype=np.int32), *(poisoned(1, dtype=np.int64) for _ in "ab")
    weights = np.full((1, 8), weight, np.float32)
    scratch = [np.full((1, 4), 1 << 20, np.int32) for _ in range(3)]
    run_kernel(
        emulated_kernel("page_recall", "page_recall_cuda"),
        (1, 1),
        [recalled, fresh, n_fresh, n_filled],
        *(recalled, 4, 4, count(4), np.zeros(1, np.int64), count(1), 1, ids, 4, count(4), weights, 8),
        *(fresh, 4, n_fresh, n_filled, scratch[0], np.zeros((1, 4), np.float32), *scratch[1:]),
    )
    assert least <= n_fresh[0] == fresh.sum() <= 4
    assert n_filled[0] == (recalled >= 0).sum()
    assert {*recalled[0, 0]} <= {*held, 1, 2, 3, 5}


def test_what_is_always_read_is_as_long_as_told() -> None:
    """At least `window` tokens before the newest one, less than a page more."""
    for shape in SHAPES.values():
        for n in range(1, 300):
            kept = n - chosen_end(n, shape.n_sinks, shape.window, shape.page)
            assert kept <= shape.ring_len
            assert kept > shape.window or n <= shape.n_sinks + shape.window


def test_rows_that_cannot_be_gathered_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 24 bytes cannot be gathered"):
        emulated_kernel("page_gather", "page_gather_cuda", 24, False)


def test_a_step_reads_no_more_rows_than_there_are() -> None:
    assert PageShape(1, 64, "f16", 16, 0, 16, "extremes", "max").most_rows(10, 4) == 10

"""What steps that read the best pages do beside scoring, emulated."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cuda_cases.page_rows import ORACLE, QUEST, SINKS, page_gather, page_lengths
from cuda_kernel import emulated_kernel, solve

from yakvrt.kernels.page_layout import PageShape, chosen_end

SHAPES = {"quest": QUEST, "oracle": ORACLE, "sinks": SINKS}


@pytest.mark.parametrize("name", SHAPES)
def test_page_lengths(name: str) -> None:
    """Slots shorter than what is always read, with one page more, and long ones; budgets below and above."""
    shape = SHAPES[name]
    first = shape.n_sinks + shape.window + shape.page + 1  # tokens with one page to choose from
    lengths = [1, first - 1, first, first + shape.page, 1000, 130]
    solve(page_lengths(shape, lengths, [3, 1, 1, 1, 5, 10**6], 3))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("grid", [1, 3])
def test_page_gather(name: str, grid: int) -> None:
    shape = replace(SHAPES[name], head_dim=16, kind="f32" if grid == 1 else "bf16")
    solve(page_gather(shape, [1, 9, shape.ring_places + 40, 133], 3, 2, grid))


def test_what_is_always_read_is_as_long_as_told() -> None:
    """At least `window` tokens before the newest one, less than a page more."""
    for shape in SHAPES.values():
        for n in range(1, 300):
            kept = n - chosen_end(n, shape.n_sinks, shape.window, shape.page)
            assert kept <= shape.ring_len
            assert kept > shape.window or n <= shape.n_sinks + shape.window


def test_rows_that_cannot_be_gathered_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 24 bytes cannot be gathered"):
        emulated_kernel("page_gather", "page_gather_cuda", 24)


def test_a_step_reads_no_more_rows_than_there_are() -> None:
    assert PageShape(1, 64, "f16", 16, 0, 16, "extremes", "max").most_rows(10, 4) == 10

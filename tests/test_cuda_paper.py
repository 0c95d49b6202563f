"""Kernels of YAKV as its paper has it, emulated."""

from __future__ import annotations

import pytest
from cuda_cases.paper import paper_exact, paper_fresh, paper_lengths, paper_rows
from cuda_kernel import emulated_kernel, solve

from yakvrt.kernels import paper_fresh as fresh
from yakvrt.kernels.paper_rows import check_width


@pytest.mark.parametrize("n_sinks", [0, 5])
def test_paper_lengths(n_sinks: int) -> None:
    """Nothing indexed, less than the first ones, one token, many; budgets below and above; many rows."""
    lengths, ends = [1, 4, 9, 300, 300], [0, 3, n_sinks + 1, 290, 290]
    solve(paper_lengths(lengths, ends, [7, 7, 7, 7, 10**6], n_sinks, 3))
    solve(paper_lengths([500] * 130, list(range(130)), [40] * 130, n_sinks, 1))


@pytest.mark.parametrize("marks", [fresh.MARKS, 64])
def test_paper_fresh(marks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where marks are too few for all tokens at once."""
    monkeypatch.setattr(fresh, "MARKS", marks)
    solve(paper_fresh(200, [0, 1, 60, 199], 4))
    solve(paper_fresh(1000, [600], 2))


@pytest.mark.parametrize("n_sinks", [0, 6])
def test_paper_exact(n_sinks: int) -> None:
    """A tail as long as the ring, longer and shorter; fewer tokens than the first ones; nothing indexed."""
    lengths, ends = [1, 5, 40, 61, 90, 33], [0, 4, 25, 40, 20, 0]
    for row_bytes, grid in ((16, 1), (256, 3)):
        solve(paper_exact(row_bytes, lengths, ends, n_sinks, 15, 2, grid))


@pytest.mark.parametrize(
    ("head_dim", "kind", "n_heads"),
    [
        *((16, "f32", 1), (32, "f32", 2), (64, "f16", 2), (48, "bf16", 3), (80, "f16", 1), (64, "bf16", 3)),
        *((48, "f32", 4), (128, "bf16", 8)),
    ],
)
def test_paper_rows(head_dim: int, kind: str, n_heads: int) -> None:
    """Several tokens to a warp and one; rows that are padded, or have a rotation of their own; more tokens
    than a turn of the warps takes.
    """
    solve(paper_rows(head_dim, kind, n_heads, [3, 0, 20], 40, 2))


def test_rows_that_have_no_kernel_are_refused() -> None:
    for width in (16, 1024, 2048):
        check_width(width)
    for width in (2560, 4096):
        with pytest.raises(ValueError, match=f"the model's have {width}: take another KV method, or the CPU"):
            check_width(width)
    with pytest.raises(ValueError, match="no CUDA kernel decodes f8 rows"):
        emulated_kernel("paper_rows", "paper_rows_cuda", 64, 32, "f8")
    with pytest.raises(ValueError, match="rows of 24 bytes cannot be gathered"):
        emulated_kernel("paper_exact", "paper_exact_cuda", 24)

"""A prompt in YAKV's pools on a GPU, emulated, against numpy."""

from __future__ import annotations

import pytest
from cuda_cases.prompt import counters, keep_rows, tail_errors, widen
from cuda_cases.recall import recall
from cuda_kernel import emulated_kernel, solve


@pytest.mark.parametrize(
    ("head_dim", "kind", "first", "n_blocks"),
    [(64, "bf16", 0, 1), (128, "f16", 64, 2), (48, "f16", 0, 3), (256, "bf16", 192, 1)],
)
def test_widen(head_dim: int, kind: str, first: int, n_blocks: int) -> None:
    solve(widen(head_dim, kind, first, n_blocks))


def test_heads_without_pairs_are_refused() -> None:
    for builder in ("yakv_widen_cuda", "yakv_mean_key_cuda"):
        with pytest.raises(ValueError, match="even ones from 16 to 256"):
            emulated_kernel("yakv_prompt_cuda", builder, 65, "bf16")


@pytest.mark.parametrize("chunks", [[24], [1, 2, 30], [100, 23], [23, 1]])
def test_keep_rows(chunks: list[int]) -> None:
    solve(keep_rows(24, 300, chunks))


@pytest.mark.parametrize(("head_dim", "n_partials"), [(64, 4), (128, 40), (48, 5), (256, 6)])
def test_tail_errors(head_dim: int, n_partials: int) -> None:
    solve(tail_errors(head_dim, 2, 3, n_partials))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("n_rows", "n_heads"), [(1, 1), (32, 8), (33, 31)])
def test_counters(cached: bool, n_rows: int, n_heads: int) -> None:
    solve(counters(cached, n_rows, n_heads))


R3, Q4 = ("r3", "q4"), ("q4", "q4")


@pytest.mark.parametrize(
    ("head_dim", "kind", "selector", "formats", "centred", "first", "n", "ring_len"),
    [
        (64, "bf16", "2bit", R3, True, 0, 1, 4096),
        (64, "f16", "2bit", Q4, True, 64, 65, 128),  # wraps around
        (128, "f16", "2bit", R3, False, 128, 63, 192),
        (128, "bf16", "2bit", Q4, False, 0, 64, 4096),
        (96, "f16", "2bit", R3, True, 0, 5, 4096),
        (48, "bf16", "2bit", R3, True, 64, 9, 128),  # values begin within a word
        (256, "bf16", "2bit", R3, True, 0, 66, 4096),
        (64, "bf16", "1.5bit", R3, True, 64, 63, 4096),
        (96, "f16", "1.5bit", R3, False, 0, 65, 4096),
        (128, "f16", "1.5bit", Q4, True, 0, 9, 4096),
    ],
)
def test_recall(
    head_dim: int,
    kind: str,
    selector: str,
    formats: tuple[str, str],
    centred: bool,
    first: int,
    n: int,
    ring_len: int,
) -> None:
    solve(recall(head_dim, kind, selector, formats, centred, first, n, ring_len))


def test_rows_of_other_formats_are_not_recalled() -> None:
    with pytest.raises(ValueError, match="rows of q8 and q4 have no CUDA kernel: use q4 or r3 for keys"):
        emulated_kernel("yakv_recall_cuda", "yakv_recall_cuda", 64, "f16", "2bit", "q8", "q4", True)

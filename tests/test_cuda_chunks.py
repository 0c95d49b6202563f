"""What steps that read the best chunks do beside scoring, emulated."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.chunks import chunk_gather, chunk_lengths, chunk_values, low_rank_keys
from cuda_kernel import emulated_kernel, solve

from yakvrt.kernels.chunk_layout import ChunkShape
from yakvrt.kernels.low_rank_chunks import LowRankChunks, chunks_below


def test_chunk_lengths() -> None:
    """Heads that can choose different numbers of chunks, none of them, more than are wanted or have places;
    more segments than a block.
    """
    n_others = [[0, 0, 0], [1, 2, 0], [9, 40, 41], [1000, 999, 5]]
    solve(chunk_lengths(n_others, [3, 3, 40, 1], [3, 1, 50, 10**6], 2, 1000))
    solve(chunk_lengths([[7] * 8] * 40, [5] * 40, [6] * 40, 4, 9))


@pytest.mark.parametrize("pieces", [1, 33, 128, 300])
def test_chunk_values(pieces: int) -> None:
    """Chunks smaller than what is under way at once, as large, larger; fewer warps than places, and more."""
    solve(chunk_values(3, 2, 5, 9, pieces, 1))
    solve(chunk_values(1, 3, 3, 4, pieces, 4))


@pytest.mark.parametrize(
    ("head_dim", "kind", "rank", "page"),
    [
        (16, "f32", 7, 4),
        (64, "f16", 40, 8),
        (80, "bf16", 8, 1),
        (128, "bf16", 33, 9),
        (256, "bf16", 24, 3),
        (256, "f32", 71, 16),
    ],
)
def test_low_rank_keys(head_dim: int, kind: str, rank: int, page: int) -> None:
    """Ranks below and above what is staged at once, and no multiples of 8; chunks shorter and longer than the
    keys of a turn.
    """
    solve(low_rank_keys(head_dim, kind, rank, page, 2, 2, 5, 8))


@pytest.mark.parametrize("grid", [1, 3])
@pytest.mark.parametrize("page", [1, 4, 5])
def test_chunk_gather(page: int, grid: int) -> None:
    """Nothing but a tail, within the ring, as long, longer, and far longer; outliers alone; no outliers."""
    counts = [(0, 0), (0, 2), (3, 3), (2, 4), (9, 9), (0, 0)]
    sizes = [1, 2 * page + 7, 3 * page + 8, 4 * page + 1, 9 * page + 40, 41]
    solve(chunk_gather(64, page, 8, counts, sizes, 3, grid))
    solve(chunk_gather(32, page, 41, counts, sizes, 20, grid))


def test_chunk_gather_stays_within_its_rows() -> None:
    """Where counts and places say more than there can be, as a file may."""
    solve(chunk_gather(32, 4, 16, [(5, 6), (20, 20)], [30, 90], 12, 2, most_rows=40))


def test_rows_without_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 24 bytes cannot be gathered"):
        emulated_kernel("chunk_gather", "chunk_gather_cuda", 24)
    with pytest.raises(ValueError, match="of 66 numbers: use a multiple of 4"):
        emulated_kernel("low_rank_keys", "low_rank_keys_cuda", 66, "f16")
    with pytest.raises(ValueError, match="in f8: use f32, f16 or bf16"):
        emulated_kernel("low_rank_keys", "low_rank_keys_cuda", 64, "f8")


def test_chunks_of_a_prompt_are_outliers_and_others() -> None:
    shape = ChunkShape(2, 16, "f32", 4, "max", 8, 12, 6, (1.0,) * 8, 1.0)
    for n in (0, 3, 4, 8, 13, 61):
        k = np.random.default_rng(n).standard_normal((3, n, 16), np.float32)
        made = LowRankChunks.of(k, shape, shape.rope(n))
        assert made.n_chunks == max(0, n // 4 - 1)
        assert made.outliers.shape == (3, min(3, made.n_chunks))
        for others, outliers in zip(made.numbers, made.outliers, strict=True):
            assert sorted([*others, *outliers]) == [*range(made.n_chunks)]
            assert sorted(others) == [*others]
            assert sorted(outliers) == [*outliers]
        chunks = k[:, : made.n_chunks * 4].reshape(3, -1, 4, 16)
        expected = np.take_along_axis(chunks.mean(axis=2), made.numbers[..., None], axis=1)
        np.testing.assert_array_equal(made.landmarks, expected)
        assert made.keys.left.shape == (made.n_chunks * 4 if made.numbers.size else 0, 8)


def test_chunks_that_remain_after_a_cut() -> None:
    numbers = np.array([[0, 2, 5, 7], [1, 2, 0, 0], [0, 0, 0, 0]], np.int32)
    left, n_others = chunks_below(numbers, np.array([4, 2, 0]), np.array([5, 2, 9]))
    assert left.tolist() == [[0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert n_others.tolist() == [2, 1, 0]

"""HIGGS codes of rows on a GPU, emulated, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_cases.higgs import encode, mean_rows, residuals
from cuda_emulated_ops import emulated
from cuda_emulated_shortcuts import shortened
from cuda_kernel import emulated_kernel, poisoned, run_kernel, solve

from yakvrt.kernels.cuda_kernel import CudaKernel
from yakvrt.kernels.higgs_encode import nearest_ref
from yakvrt.kernels.higgs_encode_cuda import TOGETHER, make_search, rows_of_a_block

RNG = np.random.default_rng(51)
CASES = [
    (2, 256, "bytes", 64, "norm", True, False),
    (2, 256, "bytes", 80, "least_squares", False, True),
    (2, 64, "sixes", 64, "norm", False, False),
    (4, 256, "blocks", 48, "norm", True, False),
    (4, 256, "blocks", 128, "unbiased", True, True),
    (8, 256, "blocks", 48, "unbiased", False, False),
    (8, 256, "blocks", 256, "norm", True, False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_encode(case: tuple[int, int, str, int, str, bool, bool]) -> None:
    n_rows = rows_of_a_block(case[3]) + 5 if case[1] == 64 else 6
    solve(encode(*case, n_rows))


def search_in_emulator(g: Any, y: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scores. Shapes: y [threads, together, d], the first half of a grid [n / 2, d]."""
    n_threads, together, dim = y.shape
    stride = -(-(dim + 1) // 4) * 4
    points = np.zeros((len(half), stride), np.float32)
    points[:, :dim], points[:, dim] = half, 0.5 * (half**2).sum(axis=1)
    search = make_search(g, dim, 2 * len(half), stride, together)

    def kernel(out: Any, best: Any, y: Any, points: Any) -> None:
        thread = emulated.thread()
        own, codes = emulated.local_f32(together * dim), emulated.local_i32(together)
        scores = emulated.local_f32(together)
        for i in range(together * dim):
            own[i] = y[thread * together * dim + i]
        search(own, points, codes, scores)
        for i in range(together):
            out[thread * together + i], best[thread * together + i] = codes[i], scores[i]

    out, best = np.full(y.shape[:2], -7, np.int32), poisoned(*y.shape[:2])
    run_kernel(CudaKernel(kernel, "i32* f32* f32* f32*", n_threads), 1, [out, best], out, best, y, points)
    return out, best


@pytest.mark.parametrize("g", [emulated, shortened], ids=["function", "shortcut"])
def test_equally_near_points_give_the_lowest_code(g: Any) -> None:
    """Searches among points that float32 holds exactly, of sub-vectors as near to several of them."""
    half = RNG.choice([-2, -1, 1, 2], (32, 2)).astype(np.float32)
    y = RNG.integers(-3, 4, (32, TOGETHER[2], 2)).astype(np.float32)
    np.testing.assert_array_equal(search_in_emulator(g, y, half)[0], nearest_ref(y, np.vstack([half, -half])))


@pytest.mark.parametrize("dim", TOGETHER)
def test_the_shortcut_of_whole_models_is_the_search_to_the_bit(dim: int) -> None:
    taken = make_search(shortened, dim, 256, -(-(dim + 1) // 4) * 4, TOGETHER[dim])
    assert taken.__module__ == "cuda_emulated_shortcuts"
    half = RNG.standard_normal((128, dim)).astype(np.float32)
    half[3] = half[90]
    y = RNG.standard_normal((32, TOGETHER[dim], dim)).astype(np.float32)
    y[0], y[1], y[2, 0, 0], y[3, 0, 0], y[4] = 0, -0.0, np.nan, np.inf, half[90]
    for own, shortcut in zip(*(search_in_emulator(g, y, half) for g in (emulated, shortened)), strict=True):
        np.testing.assert_array_equal(own.view(np.uint32), shortcut.view(np.uint32))


@pytest.mark.parametrize(
    ("dim", "n_points", "layout", "head_dim", "told"),
    [
        (8, 4096, "bytes", 64, "a grid of 4096 points of dimension 8 has no CUDA kernel"),
        (2, 256, "words", 64, "no layout 'words' of codes: choose one of bytes, sixes, blocks"),
        (2, 256, "sixes", 64, "codes of 256 points take more than 6 bits"),
        (8, 256, "bytes", 48, "rows of 6 codes are no whole words"),
        (2, 256, "bytes", 72, "a head dimension of 72 has no rotation"),
    ],
)
def test_what_cannot_be_encoded_is_refused(
    dim: int, n_points: int, layout: str, head_dim: int, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        emulated_kernel(
            "higgs_encode_cuda", "higgs_encode_cuda", dim, n_points, layout, head_dim, "norm", False, False
        )


@pytest.mark.parametrize(
    ("kind", "head_dim", "centred"),
    [
        *(("2bit", size, centred) for size, centred in ((64, True), (128, False), (192, True), (256, True))),
        *(("1.5bit", size, centred) for size, centred in ((64, False), (96, True), (128, True), (192, True))),
    ],
)
def test_residuals(kind: str, head_dim: int, centred: bool) -> None:
    solve(residuals(kind, head_dim, centred, n_heads=1))


@pytest.mark.parametrize(
    ("head_dim", "centred", "n_blocks"),
    [(64, True, 1), (128, False, 2), (48, True, 1), (192, True, 1), (256, True, 1)],
)
def test_mean_rows(head_dim: int, centred: bool, n_blocks: int) -> None:
    solve(mean_rows(head_dim, centred, n_blocks))

"""The rotation of HIGGS on a GPU, emulated, against its matrix."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_kernel import blocks, count, emulated_kernel, run_kernel

from yakvrt.cuda.kernel_list import ROTATIONS
from yakvrt.kernels.rotate import rotation, rotation_lanes

RNG = np.random.default_rng(13)


@pytest.mark.parametrize(
    ("head_dim", "signs"), [(16, False), *((size, False) for size in ROTATIONS), (48, True), (256, True)]
)
@pytest.mark.parametrize("inverse", [False, True])
def test_rotate(head_dim: int, inverse: bool, signs: bool) -> None:
    matrix = rotation(head_dim, signs)
    per_block = 128 // rotation_lanes(head_dim)
    n_rows = per_block + 1
    x = RNG.standard_normal((n_rows, head_dim + 4)).astype(np.float32)
    out = np.full((n_rows + 1, head_dim), np.nan, np.float32)
    kernel = emulated_kernel("rotate", "rotate_cuda", head_dim, inverse, signs)
    grid = blocks(n_rows, per_block)
    run_kernel(kernel, grid, [out], out, head_dim, x, head_dim + 4, count(n_rows))
    expected = x[:, :head_dim].astype(np.float64) @ (matrix if inverse else matrix.T)
    np.testing.assert_allclose(out[:n_rows], expected, rtol=0, atol=3e-6)
    assert np.isnan(out[n_rows]).all()
    run_kernel(kernel, grid, [x], x, head_dim + 4, x, head_dim + 4, count(n_rows))
    np.testing.assert_array_equal(x[:, :head_dim], out[:n_rows])

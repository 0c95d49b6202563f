"""The rotation of HIGGS on a GPU, emulated, against its matrix."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases.higgs import rotate
from cuda_kernel import count, emulated_kernel, run_kernel, solve

from yakvrt.cuda.kernel_list import ROTATIONS
from yakvrt.kernels.rotate import rotation, rotation_lanes

RNG = np.random.default_rng(13)


@pytest.mark.parametrize(
    ("head_dim", "signs"), [(16, False), *((size, False) for size in ROTATIONS), (48, True), (256, True)]
)
@pytest.mark.parametrize("inverse", [False, True])
def test_rotate(head_dim: int, inverse: bool, signs: bool) -> None:
    solve(rotate(head_dim, inverse, signs, 128 // rotation_lanes(head_dim) + 1))


def test_rotate_in_place() -> None:
    x = RNG.standard_normal((3, 68)).astype(np.float32)
    expected = x[:, :64].astype(np.float64) @ rotation(64).T
    run_kernel(emulated_kernel("rotate", "rotate_cuda", 64, False, False), 1, [x], x, 68, x, 68, count(3))
    np.testing.assert_allclose(x[:, :64], expected, rtol=0, atol=3e-6)

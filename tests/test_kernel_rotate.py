"""The rotation of HIGGS: orthonormal, and its fast form equal to the matrix."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_team import KernelTeam, count, poisoned

from yakvrt.kernels.rotate import rotation, sign_flips

RNG = np.random.default_rng(11)
SIZES = [16, 32, 48, 64, 80, 96, 112, 128, 192, 256, 512]


@pytest.mark.parametrize("head_dim", SIZES)
@pytest.mark.parametrize("signs", [False, True])
def test_rotation_is_orthonormal_and_flat(head_dim: int, signs: bool) -> None:
    matrix = rotation(head_dim, signs).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(head_dim), rtol=0, atol=1e-6)
    assert np.abs(matrix).max() <= np.sqrt(2 / head_dim) + 1e-6


def test_signs_are_balanced() -> None:
    assert abs(sign_flips(256).sum()) < 64
    assert set(sign_flips(256)) == {-1.0, 1.0}


@pytest.mark.parametrize("head_dim", [0, -16, 1, 8, 24, 72, 100, 144, 176])
def test_a_size_without_rotation_is_refused(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"head dimension of {head_dim} has no rotation"):
        rotation(head_dim)


@pytest.mark.parametrize(("head_dim", "signs"), [*((size, False) for size in SIZES), (48, True), (128, True)])
@pytest.mark.parametrize("inverse", [False, True])
def test_rotate(team: KernelTeam, head_dim: int, inverse: bool, signs: bool) -> None:
    matrix = rotation(head_dim, signs)
    n_rows = 5
    x = RNG.standard_normal((n_rows, head_dim + 16)).astype(np.float32)
    out = poisoned(n_rows + 1, head_dim)
    arguments = (out, out.strides[0], x, x.strides[0], count(n_rows))
    team.run("rotate", "rotate_cpu", (head_dim, inverse, signs), *arguments)
    expected = x[:, :head_dim].astype(np.float64) @ (matrix if inverse else matrix.T)
    np.testing.assert_allclose(out[:n_rows], expected, rtol=0, atol=3e-6)
    assert np.isnan(out[n_rows]).all()
    rows = x.copy()
    arguments = (rows, rows.strides[0], rows, rows.strides[0], count(n_rows))
    team.run("rotate", "rotate_cpu", (head_dim, inverse, signs), *arguments)
    np.testing.assert_array_equal(rows[:, :head_dim], out[:n_rows])

"""The committed HIGGS grids: as good as METHODS asks, measured on one fixed Gaussian sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from yakvrt import higgs_grids
from yakvrt.higgs_grids import GRIDS, load_grid
from yakvrt.kernels.higgs_layout import GridTables, byte_grid, pack_tables

LIMITS = {
    "d2n256": 0.00780,
    "d2n64": 0.0298,
    "d2n16": 0.1080,
    "d4n256": 0.0967,
    "d8n4096": 0.1690,
    "d8n256": 0.3235,
    "d4n16": 0.3440,
}


@pytest.mark.parametrize("name", GRIDS)
def test_mean_squared_error(name: str) -> None:
    grid = load_grid(name)
    n_points, dim = grid.shape
    rng = np.random.default_rng(1)
    n = 2**29 // n_points // dim // 4
    squares, count, half = 0.0, 0, 0.5 * (grid**2).sum(axis=1)
    for start in range(0, min(n, 500_000), 8192):
        x = rng.standard_normal((min(8192, n - start), dim), np.float32)
        codes = (x @ grid.T - half).argmax(axis=1)
        squares += float(((x - grid[codes]) ** 2).sum(dtype=np.float64))
        count += x.size
    assert squares / count < LIMITS[name]


@pytest.mark.parametrize("name", GRIDS)
def test_values_are_exact_in_float16_and_points_are_distinct(name: str) -> None:
    grid = load_grid(name)
    np.testing.assert_array_equal(grid.astype(np.float16).astype(np.float32), grid)
    assert len(np.unique(grid, axis=0)) == len(grid)
    assert np.abs(grid.mean(axis=0)).max() < 0.05


def test_unknown_and_damaged_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no HIGGS grid 'd3n7'"):
        load_grid("d3n7")
    monkeypatch.setattr(higgs_grids, "__file__", str(tmp_path / "higgs_grids.py"))
    with pytest.raises(ValueError, match="cannot be read"):
        load_grid("d2n16")
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "higgs_d2n16.npy", np.full((16, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="is damaged"):
        load_grid("d2n16")


@pytest.mark.parametrize("name", ["d2n256", "d2n64", "d4n256", "d8n256"])
def test_tables(name: str) -> None:
    grid = load_grid(name)
    n_points, dim = grid.shape
    tables, memory = GridTables(dim, n_points), pack_tables(grid)
    half = n_points // 2
    search = memory[: half * (dim + 1) * 4].view(np.float32).reshape(half, dim + 1)
    np.testing.assert_array_equal(search[:, :dim], grid[:half])
    planes = memory[tables.planes :][: n_points * dim * 2].view(np.float16).reshape(dim, n_points)
    np.testing.assert_array_equal(planes.T, grid)
    codes, step = byte_grid(grid)
    assert memory[tables.step :][:4].view(np.float32)[0] == step
    assert np.abs((codes - 127.5) * step - grid).max() <= 0.501 * step
    bytes8 = memory[tables.bytes8 : tables.words8].reshape(dim, 128)
    np.testing.assert_array_equal(bytes8[:, :half], codes[:half].T)
    with pytest.raises(ValueError, match="4096 points has no byte codes"):
        pack_tables(load_grid("d8n4096"))
    with pytest.raises(ValueError, match="mirror images"):
        pack_tables(grid[[1, 0, *range(2, n_points)]])
    with pytest.raises(ValueError, match="exact in float16"):
        pack_tables(grid + np.float32(1e-6))

"""Host rows of HIGGS: kernels against numpy, over head sizes, formats, scale rules and run lengths."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_team import KernelTeam, count, poisoned

from yakvrt.cpu.memory import aligned
from yakvrt.higgs_grids import load_grid
from yakvrt.kernels.higgs_encode import encode_scratch_bytes
from yakvrt.kernels.higgs_layout import ROW_FORMATS, pack_tables
from yakvrt.kernels.higgs_rows import (
    decode_rows_ref,
    encode_rows_ref,
    pack_sixes_ref,
    unpack_sixes_ref,
)

RNG = np.random.default_rng(12)
# relative squared error of Gaussian rows
ERRORS = {"q4": 0.0080, "q3": 0.0305, "q8": 1e-4, "bf16": 1e-5, "r3": 0.0305}
CASES = [
    ("q4", 48, "norm", False),
    ("q4", 64, "unbiased", False),
    ("q4", 80, "norm", True),
    ("q4", 96, "norm", False),
    ("q4", 112, "least_squares", False),
    ("q4", 128, "norm", False),
    ("q4", 192, "norm", False),
    ("q4", 256, "norm", False),
    ("q3", 48, "norm", False),
    ("q3", 64, "unbiased", True),
    ("q3", 112, "norm", False),
    ("q3", 128, "least_squares", False),
    ("q8", 80, "norm", True),
    ("q8", 128, "norm", False),
    ("bf16", 48, "norm", False),
    ("bf16", 128, "norm", False),
]


def grid_of(row_format: str) -> np.ndarray | None:
    name = ROW_FORMATS[row_format].grid
    return load_grid(name) if name else None


def tables_of(grid: np.ndarray | None) -> np.ndarray | int:
    return 0 if grid is None else pack_tables(grid)


def rows_of(n: int, head_dim: int) -> np.ndarray:
    """Gaussian rows of very different sizes with a common offset; one row is zero."""
    sizes = np.exp(RNG.standard_normal((n, 1)) * 2)
    rows = (RNG.standard_normal((n, head_dim)) * sizes).astype(np.float32)
    if n > 1:
        rows[1] = 0
    return rows


def encode(
    team: KernelTeam,
    parameters: tuple[str, int, str, bool],
    rows: np.ndarray,
    mean: np.ndarray | None,
    n: int,
) -> tuple[np.ndarray, np.ndarray]:
    row_format, head_dim = parameters[:2]
    n_bytes = ROW_FORMATS[row_format].n_bytes(head_dim)
    codes, scales = np.full((n + 1, n_bytes + 16), 0xEE, np.uint8), np.full((n + 1, 2), np.nan, np.float16)
    scratch = aligned(team.n_threads * encode_scratch_bytes(head_dim)).reshape(team.n_threads, -1)
    scratch[:] = 0xFF
    tables = tables_of(grid_of(row_format))
    arguments = (rows, rows.strides[0], 0 if mean is None else mean, count(n))
    arguments += (codes, codes.strides[0], scales, scales.strides[0], tables, scratch, scratch.strides[0])
    team.run("higgs_rows", "encode_rows_cpu", parameters, *arguments)
    assert (codes[:n, n_bytes:] == 0xEE).all()
    assert (codes[n] == 0xEE).all()
    assert np.isnan(scales[:, 1]).all()
    assert np.isnan(scales[n]).all()
    return codes[:n, :n_bytes].copy(), scales[:n, 0].copy()


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_encode_rows(team: KernelTeam, case: tuple[str, int, str, bool]) -> None:
    row_format, head_dim, rule, signs = case
    mean = RNG.standard_normal(head_dim).astype(np.float32) * 3
    for n in (0, 1, 16, 37):
        rows = rows_of(n + 1, head_dim)
        rows[:, :] += mean
        codes, scales = encode(team, case, rows, mean, n)
        rows = rows[:n]
        expected, expected_scales = encode_rows_ref(row_format, rows, grid_of(row_format), mean, rule, signs)
        same = (codes == expected).all(axis=1)
        np.testing.assert_allclose(
            scales[same].astype(float), expected_scales[same].astype(float), rtol=2e-3, atol=1e-7
        )
        if not n:
            continue
        assert same.mean() > 0.8  # ties that rounding decides, also about scales that follow from the codes
        got = decode_rows_ref(row_format, codes, scales, grid_of(row_format), rotated=False, signs=signs)
        best = decode_rows_ref(
            row_format, expected, expected_scales, grid_of(row_format), rotated=False, signs=signs
        )
        target = rows.astype(float) - (0 if row_format == "bf16" else mean)
        np.testing.assert_allclose(
            ((got - target) ** 2).sum(axis=1), ((best - target) ** 2).sum(axis=1), rtol=0.01, atol=1e-6
        )


@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_error_of_gaussian_rows(row_format: str) -> None:
    rows = RNG.standard_normal((2000, 128)).astype(np.float32)
    codes, scales = encode_rows_ref(row_format, rows, grid_of(row_format))
    decoded = decode_rows_ref(row_format, codes, scales, grid_of(row_format), rotated=False)
    assert ((decoded - rows) ** 2).mean() < ERRORS[row_format]
    bigger, bigger_scales = encode_rows_ref(row_format, rows * 4, grid_of(row_format))
    if row_format != "bf16":
        np.testing.assert_array_equal(bigger, codes)
        np.testing.assert_array_equal(bigger_scales, scales * 4)


def test_scale_rules() -> None:
    rows, grid = RNG.standard_normal((50, 64)).astype(np.float32), load_grid("d2n64")
    decoded = {
        rule: decode_rows_ref("q3", *encode_rows_ref("q3", rows, grid, None, rule), grid, rotated=False)
        for rule in ("norm", "unbiased", "least_squares")
    }
    along = (decoded["unbiased"] * rows).sum(axis=1)
    np.testing.assert_allclose(along, (rows.astype(float) ** 2).sum(axis=1), rtol=1e-3)
    errors = {rule: ((d - rows) ** 2).sum(axis=1) for rule, d in decoded.items()}
    assert (errors["least_squares"] <= np.minimum(errors["norm"], errors["unbiased"]) * 1.001).all()


def test_sixes_pack_and_unpack() -> None:
    codes = RNG.integers(0, 64, (3, 24)).astype(np.uint8)
    packed = pack_sixes_ref(codes)
    assert packed.shape == (3, 18)
    np.testing.assert_array_equal(unpack_sixes_ref(packed), codes)


@pytest.mark.parametrize("head_dim", [32, 48, 64, 80, 96, 112, 128, 192, 256])
@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_decode_rows(team: KernelTeam, row_format: str, head_dim: int) -> None:
    n = 9
    grid, n_bytes = grid_of(row_format), ROW_FORMATS[row_format].n_bytes(head_dim)
    codes = RNG.integers(0, 256, (n, n_bytes)).astype(np.uint8)
    if row_format == "bf16":
        codes = RNG.standard_normal((n, head_dim)).astype(np.float32).view(np.uint16)[:, 1::2].copy()
        codes = codes.view(np.uint8)
    scales = np.ones((n, 2), np.float16)
    if row_format != "bf16":
        scales[:, 0] = np.exp(RNG.standard_normal(n))
    out = poisoned(n + 1, head_dim + 16)
    arguments = (out, out.strides[0], codes, n_bytes, scales, 4, tables_of(grid), count(n))
    team.run("higgs_rows", "decode_rows_cpu", (row_format, head_dim), *arguments)
    expected = decode_rows_ref(row_format, codes, scales[:, 0], grid)
    np.testing.assert_allclose(out[:n, :head_dim], expected, rtol=1e-6, atol=0)
    assert np.isnan(out[n]).all()
    assert np.isnan(out[:, head_dim:]).all()

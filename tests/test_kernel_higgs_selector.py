"""Selector blocks: the encoder against numpy, over kinds, head sizes and token counts."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_team import KernelTeam, count

from yakvrt.cpu.memory import aligned
from yakvrt.higgs_grids import load_grid
from yakvrt.kernels.higgs_encode import encode_scratch_bytes
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS, SELECTORS, pack_tables
from yakvrt.kernels.higgs_selector import decode_selector_ref, encode_selector_ref
from yakvrt.kernels.rotate import rotation

RNG = np.random.default_rng(13)
CASES = [
    ("2bit", 48, "unbiased", False),
    ("2bit", 64, "norm", True),
    ("2bit", 112, "unbiased", False),
    ("2bit", 128, "unbiased", False),
    ("2bit", 256, "unbiased", False),
    ("1bit", 48, "norm", False),
    ("1bit", 80, "unbiased", False),
    ("1bit", 128, "unbiased", False),
    ("1.5bit", 64, "norm", False),
    ("1.5bit", 80, "unbiased", True),
    ("1.5bit", 128, "unbiased", False),
]


def grids_of(kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    selector = SELECTORS[kind]
    return load_grid(selector.grid), load_grid(selector.mean_grid) if selector.mean_grid else None


def rows_of(n: int, head_dim: int) -> np.ndarray:
    """Keys that drift, as neighbours do, with one zero row."""
    rows = (
        RNG.standard_normal((n, head_dim)) + np.repeat(RNG.standard_normal((-(-n // 8), head_dim)), 8, 0)[:n]
    )
    if n > 1:
        rows[1] = 0
    return (rows * 3).astype(np.float32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_encode_selector(team: KernelTeam, case: tuple[str, int, str, bool]) -> None:
    kind, head_dim, rule, signs = case
    selector, (grid, mean_grid) = SELECTORS[kind], grids_of(kind)
    tables = pack_tables(grid)
    mean_tables = 0 if mean_grid is None else pack_tables(mean_grid)
    mean = RNG.standard_normal(head_dim).astype(np.float32)
    for n in (0, 1, 63, 64, 150):
        rows = rows_of(n + 1, head_dim)
        n_blocks, block_bytes = -(-n // BLOCK_TOKENS), selector.block_bytes(head_dim)
        blocks = aligned((n_blocks + 1) * block_bytes).reshape(n_blocks + 1, block_bytes)
        blocks[:] = 0xEE
        scratch = aligned(team.n_threads * encode_scratch_bytes(head_dim)).reshape(team.n_threads, -1)
        scratch[:] = 0xFF
        arguments = (rows, rows.strides[0], mean, count(n), blocks, tables, mean_tables)
        team.run("higgs_selector", "encode_selector_cpu", case, *arguments, scratch, scratch.strides[0])
        assert (blocks[n_blocks] == 0xEE).all()
        if not n:
            continue
        expected = encode_selector_ref(kind, rows[:n], grid, mean_grid, mean, rule, signs)
        assert (blocks[:n_blocks] != expected).mean() < 0.01  # ties that rounding decides
        y = (rows[:n].astype(float) - mean) @ rotation(head_dim, signs).T.astype(float)
        errors = [
            ((decode_selector_ref(kind, b, n, head_dim, grid, mean_grid) - y) ** 2).sum(axis=1)
            for b in (blocks[:n_blocks], expected)
        ]
        np.testing.assert_allclose(errors[0].sum(), errors[1].sum(), rtol=0.003)
        np.testing.assert_allclose(errors[0], errors[1], rtol=0.1, atol=1e-6)


@pytest.mark.parametrize(("kind", "bits"), [("2bit", 2.125), ("1bit", 1.125), ("1.5bit", 1.6875)])
def test_block_bytes(kind: str, bits: float) -> None:
    assert SELECTORS[kind].block_bytes(128) * 8 == bits * 128 * BLOCK_TOKENS


@pytest.mark.parametrize(("kind", "error"), [("2bit", 0.098), ("1bit", 0.325)])
def test_error_of_gaussian_keys(kind: str, error: float) -> None:
    rows = RNG.standard_normal((640, 128)).astype(np.float32)
    grid, _ = grids_of(kind)
    blocks = encode_selector_ref(kind, rows, grid, scale_rule="norm")
    decoded = decode_selector_ref(kind, blocks, 640, 128, grid)
    y = rows.astype(float) @ rotation(128).T.astype(float)
    assert ((decoded - y) ** 2).mean() < error


def test_residual_beats_one_bit_where_neighbours_agree() -> None:
    rows = rows_of(256, 64)
    y = rows.astype(float) @ rotation(64).T.astype(float)
    errors = {}
    for kind in ("1bit", "1.5bit"):
        grid, mean_grid = grids_of(kind)
        blocks = encode_selector_ref(kind, rows, grid, mean_grid, scale_rule="norm")
        errors[kind] = ((decode_selector_ref(kind, blocks, 256, 64, grid, mean_grid) - y) ** 2).mean()
    assert errors["1.5bit"] < 0.65 * errors["1bit"]

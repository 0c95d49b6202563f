"""Scores straight from selector codes against numpy, over kinds, head sizes, group sizes and token counts."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_team import SCORE_ROUNDING, KernelTeam, count, number, poisoned

from yakvrt.cpu.memory import aligned
from yakvrt.higgs_grids import load_grid
from yakvrt.kernels.higgs_layout import BLOCK_TOKENS, SELECTORS, pack_tables
from yakvrt.kernels.higgs_score import query_bytes, score_ref
from yakvrt.kernels.higgs_selector import encode_selector_ref
from yakvrt.kernels.rotate import rotation

RNG = np.random.default_rng(14)
CASES = [
    ("2bit", 48, 1, False),
    ("2bit", 64, 3, False),
    ("2bit", 128, 6, False),
    ("2bit", 112, 2, True),
    ("2bit", 256, 16, False),
    ("2bit", 80, 5, False),
    ("2bit", 64, 17, False),
    ("1bit", 48, 3, False),
    ("1bit", 80, 1, False),
    ("1bit", 128, 6, False),
    ("1.5bit", 64, 3, False),
    ("1.5bit", 80, 9, True),
    ("1.5bit", 64, 18, False),
    ("1.5bit", 128, 6, False),
]


def clear_queries(shape: tuple[int, int, int], signs: bool) -> np.ndarray:
    """Random queries no coordinate of which lies just between two integers once rotated and scaled."""
    q = np.empty(shape, np.float32)
    matrix = rotation(shape[2], signs).T.astype(float)
    for index in np.ndindex(shape[:2]):
        distance = np.zeros(1)  # from the nearest half
        while distance.min() < 1e-4:
            q[index] = RNG.standard_normal(shape[2]) * 3
            y = q[index].astype(float) @ matrix
            distance = np.abs(y / np.abs(y).max() * 127 % 1 - 0.5)
    return q


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_score(team: KernelTeam, case: tuple[str, int, int, bool]) -> None:
    kind, head_dim, group, signs = case
    selector, n_heads = SELECTORS[kind], 2
    grid = load_grid(selector.grid)
    mean_grid = load_grid(selector.mean_grid) if selector.mean_grid else None
    tables = pack_tables(grid)
    mean_tables = 0 if mean_grid is None else pack_tables(mean_grid)
    for n_blocks in (0, 1, 2, 5):
        n = n_blocks * BLOCK_TOKENS
        shape = (n_heads, n_blocks + 1, selector.block_bytes(head_dim))
        blocks = aligned(int(np.prod(shape))).reshape(shape)
        blocks[:] = 0xFF
        means = RNG.standard_normal((n_heads, head_dim)).astype(np.float32)
        q = clear_queries((n_heads, group, head_dim), signs)
        q[0, 0] = 0
        for head in range(n_heads):
            rows = (RNG.standard_normal((n, head_dim)) * 2).astype(np.float32)
            if n:
                blocks[head, :n_blocks] = encode_selector_ref(kind, rows, grid, mean_grid, signs=signs)
        logits = poisoned(n_heads * group, n + 16)
        maxima = poisoned(n_heads, team.n_threads, group)
        scratch = aligned(team.n_threads * (group * query_bytes(kind, head_dim) + 8 * head_dim))
        scratch = scratch.reshape(team.n_threads, -1)
        scratch[:] = 0xFF
        factor = head_dim**-0.5
        arguments = (logits, logits.strides[0], maxima, q, means, number(factor), blocks, blocks.strides[0])
        arguments += (n_heads, count(n_blocks), tables, mean_tables, scratch, scratch.strides[0])
        arguments += (group * logits.strides[0],)
        team.run("higgs_score", "higgs_score_cpu", case, *arguments)
        assert np.isnan(logits[:, n:]).all()
        for head in range(n_heads):
            got = logits[head * group : (head + 1) * group, :n]
            facts = (kind, q[head], blocks[head, :n_blocks], n, factor, grid, mean_grid, means[head])
            rounded = score_ref(*facts, signs=signs, rounding=SCORE_ROUNDING)
            exact = score_ref(*facts, signs=signs)
            if not n:
                assert (maxima[head] == -np.inf).all()
                continue
            agreed = np.isclose(got, rounded, rtol=1e-5, atol=1e-4)
            # a product half-way between two bytes may become either
            assert agreed.mean() >= {"int8": 1, "tables": 0.9}[SCORE_ROUNDING]
            error = got - exact
            assert np.abs(error).max() < 0.1 * 6  # logits have a deviation of 6, codes err by 2
            assert np.sqrt((error**2).mean()) < 0.03 * 6
            np.testing.assert_array_equal(maxima[head].max(axis=0), got.max(axis=1))

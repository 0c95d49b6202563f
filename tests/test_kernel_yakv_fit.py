"""The kernel that fits the tail's part against numpy, and the fit itself."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_team import KernelTeam, count, poisoned

from yakvrt.kernels.merge_partials import MAX_PARTIALS
from yakvrt.kernels.yakv_fit import STEPS, TAIL, best_parts, tail_errors_ref
from yakvrt.kernels.yakv_layout import FIRST_RUN, run_len
from yakvrt.kvcache.tail_fit import FIT_TOKENS

RNG = np.random.default_rng(23)


@pytest.mark.parametrize(("group", "head_dim"), [(1, 48), (3, 64), (6, 128)])
@pytest.mark.parametrize(("n_rows", "n_selected"), [(1, 0), (3, 1), (2, 100), (1, 5000)])
@pytest.mark.parametrize("lift", [0, 40], ids=str)
def test_tail_errors(
    team: KernelTeam, group: int, head_dim: int, n_rows: int, n_selected: int, lift: float
) -> None:
    """`lift`: what the tail's weights are relative to lies so far above what they weigh."""
    n_heads = 2 * group
    n_partials = FIRST_RUN + -(-n_selected // run_len(n_selected))
    assert n_partials <= MAX_PARTIALS
    sums = poisoned(n_rows, MAX_PARTIALS, n_heads, head_dim)  # what lies beyond the partials is never read
    stats = poisoned(n_rows, n_heads, 2, MAX_PARTIALS)
    exact = poisoned(n_rows, n_heads * head_dim)
    exact[:] = RNG.standard_normal(exact.shape)
    stats[:, :, 0, :n_partials] = RNG.uniform(-8, 8, (n_rows, n_heads, n_partials))
    stats[:, :, 0, TAIL] += lift
    weights = RNG.uniform(0.1, 50, (n_rows, n_partials, n_heads))
    weights[:, TAIL] *= np.exp(-lift)
    stats[:, :, 1, :n_partials] = weights.swapaxes(1, 2)
    values = RNG.standard_normal((n_rows, n_partials, n_heads, head_dim))
    sums[:, :n_partials] = weights[..., None] * values
    errors = np.ones((n_heads, STEPS + 1), np.float32)
    counts = np.full((n_rows, 2), n_selected, np.int64)
    arguments = (errors, exact, exact.strides[0], sums, stats, counts, n_heads, count(n_rows))
    team.run("yakv_fit", "tail_errors_cpu", (group, head_dim), *arguments, poisoned(team.n_threads, 16))
    shaped = exact.reshape(n_rows, n_heads, head_dim)
    expected = 1 + tail_errors_ref(shaped, sums[:, :n_partials], stats[..., :n_partials])
    np.testing.assert_allclose(errors, expected, rtol=1e-4, atol=1e-4)


def test_the_best_part_is_found() -> None:
    """Exact outputs made with known parts come back; parts out of range end at it."""
    n_heads, dim = 5, 64
    wanted = np.array([0, 0.3125, 1, 1.7, -0.4])
    weights = RNG.uniform(1, 2, (FIT_TOKENS, 3, n_heads, 1))
    sums = RNG.standard_normal((FIT_TOKENS, 3, n_heads, dim)) * weights
    counted = np.ones((3, n_heads, 1))
    counted[TAIL, :, 0] = wanted
    exact = (counted * sums).sum(axis=1) / (counted * weights).sum(axis=1)
    stats = np.stack([np.zeros_like(weights), weights])[..., 0].transpose(1, 3, 0, 2)
    parts = best_parts(tail_errors_ref(exact, sums, stats))
    np.testing.assert_allclose(parts, np.clip(wanted, 0, 1), atol=1e-9)

"""Routing, dispatch and combination of experts against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_team import KernelTeam, count, poisoned

from yakvrt.kernels.moe import combine_ref, dispatch_ref, max_packs, route_ref

RNG = np.random.default_rng(9)


@pytest.mark.parametrize(("n_rows", "n_experts", "n_used"), [(1, 8, 2), (13, 128, 8), (5, 4, 4), (3, 1, 1)])
@pytest.mark.parametrize("renormalise", [False, True])
def test_route(team: KernelTeam, n_rows: int, n_experts: int, n_used: int, renormalise: bool) -> None:
    logits = (RNG.standard_normal((n_rows, n_experts)) * 3).astype(np.float32)
    ids, weights = np.full((n_rows, n_used), -7), poisoned(n_rows, n_used)
    arguments = (ids, weights, logits, logits.strides[0], n_experts, n_used, int(renormalise), count(n_rows))
    team.run("moe", "moe_route_cpu", (), *arguments)
    expected_ids, expected_weights = route_ref(logits, n_used, renormalise)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected_weights, rtol=2e-6)


@pytest.mark.parametrize("n_tokens", [1, 6])
@pytest.mark.parametrize(("n_rows", "n_experts", "n_used"), [(1, 8, 2), (40, 16, 4), (7, 3, 3)])
def test_dispatch(team: KernelTeam, n_tokens: int, n_rows: int, n_experts: int, n_used: int) -> None:
    ids = np.stack([RNG.permutation(n_experts)[:n_used] for _ in range(n_rows)])
    places = max_packs(n_rows, n_used, n_experts, n_tokens) * n_tokens
    pack_expert, pack_row = np.full(places // n_tokens, -7), np.full(places, -7)
    place_of_pair, n_places = np.full(n_rows * n_used, -7), np.full(1, -7)
    arguments = (pack_expert, pack_row, place_of_pair, n_places, ids, n_experts, n_used, count(n_rows))
    team.run("moe", "moe_dispatch_cpu", (n_tokens,), *arguments, np.empty(n_experts + 1, np.int64))
    experts, pairs = dispatch_ref(ids, n_experts, n_tokens)
    assert n_places[0] == len(pairs) <= places
    assert pack_expert[: len(experts)].tolist() == experts
    assert pack_row[: len(pairs)].tolist() == [pair // n_used if pair >= 0 else -1 for pair in pairs]
    assert [pairs[place] for place in place_of_pair] == list(range(n_rows * n_used))


def test_combine(team: KernelTeam) -> None:
    n_rows, n_used, width = 5, 3, 48
    results = RNG.standard_normal((n_rows * n_used + 4, width)).astype(np.float32)
    places = RNG.permutation(n_rows * n_used + 4)[: n_rows * n_used].astype(np.int64)
    weights = RNG.random((n_rows, n_used)).astype(np.float32)
    out = RNG.standard_normal((n_rows, width)).astype(np.float32)
    expected = combine_ref(out, results[places].reshape(n_rows, n_used, width), weights)
    arguments = (
        out,
        out.strides[0],
        results,
        results.strides[0],
        places,
        weights,
        width,
        n_used,
        count(n_rows),
    )
    team.run("moe", "moe_combine_cpu", (), *arguments)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)

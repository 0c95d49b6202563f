"""Top-k selection against numpy: rules, lengths, budgets, equal values and tokens that must not be read."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_team import KernelTeam, count, poisoned

from yakvrt.cpu.memory import aligned
from yakvrt.kernels.select_topk import (
    keys_bytes,
    make_weights,
    select_scratch_bytes,
    select_topk_ref,
    weights_ref,
)

RNG = np.random.default_rng(15)


def select(
    team: KernelTeam, rule: str, logits: list[np.ndarray], lse: np.ndarray, budgets: list[int]
) -> list[np.ndarray]:
    """Ids per head; logits [G, n] per head with lengths that may differ."""
    n_heads, group = lse.shape
    lengths = [each.shape[1] for each in logits]
    width = max(lengths)
    table = poisoned(n_heads * group, -(-width // 16) * 16 + 16)
    for head, each in enumerate(logits):
        table[head * group : (head + 1) * group, : lengths[head]] = each
    ids = np.full((n_heads, width + 1), -7, np.int32)
    counts = np.full(n_heads, -7, np.int64)
    scratch = aligned(team.n_threads * (keys_bytes(width) + select_scratch_bytes(width)))
    scratch = scratch.reshape(team.n_threads, -1)
    scratch[:] = 0x7F
    arguments = (ids, ids.strides[0], counts, table, table.strides[0], lse)
    arguments += (np.array(lengths), np.array(budgets), count(n_heads), scratch, scratch.strides[0])
    team.run("select_topk", "select_topk_cpu", (rule, group), *arguments)
    for head in range(n_heads):
        assert counts[head] == min(budgets[head], lengths[head])
        assert (ids[head, counts[head] :] == -7).all()
    return [ids[head, : counts[head]] for head in range(n_heads)]


@pytest.mark.parametrize("rule", ["sum", "max", "mean"])
@pytest.mark.parametrize("group", [1, 3])
def test_select_topk(team: KernelTeam, rule: str, group: int) -> None:
    for n, k in [
        (1, 1),
        (15, 4),
        (16, 16),
        (17, 1),
        (63, 62),
        (64, 0),
        (1000, 31),
        (8192, 256),
        (5000, 4999),
    ]:
        logits = [(RNG.standard_normal((group, n)) * 4).astype(np.float32) for _ in range(2)]
        logits[1] = logits[1][:, : n // 2 + 1]
        lse = RNG.standard_normal((2, group)).astype(np.float32) + 12
        for ids, each, own_lse in zip(select(team, rule, logits, lse, [k, k]), logits, lse, strict=True):
            weights = weights_ref(each, own_lse, rule)
            expected = select_topk_ref(weights, k)
            assert (np.diff(ids) > 0).all()
            assert len(ids) == len(expected)
            # float32 may order near-equal weights otherwise
            np.testing.assert_allclose(np.sort(weights[ids]), np.sort(weights[expected]), rtol=1e-5)


@pytest.mark.parametrize("rule", ["sum", "max", "mean"])
def test_equal_and_missing(team: KernelTeam, rule: str) -> None:
    few = np.repeat(np.array([[-1, 3, 2, 3, 2, -5]], np.float32), 50, axis=0).reshape(1, -1)
    masked = RNG.standard_normal((1, 500)).astype(np.float32)
    masked[:, ::2] = -np.inf
    cases = [np.zeros((1, 300), np.float32), np.full((1, 100), -np.inf, np.float32), few, masked]
    lse = np.full((len(cases), 1), 7, np.float32)
    for k in (1, 37, 99, 120, 260):
        for ids, each in zip(select(team, rule, cases, lse, [k] * len(cases)), cases, strict=True):
            np.testing.assert_array_equal(ids, select_topk_ref(each[0], k))


def test_nothing_to_select(team: KernelTeam) -> None:
    empty = [np.zeros((1, 0), np.float32), np.ones((1, 5), np.float32)]
    ids = select(team, "sum", empty, np.zeros((2, 1), np.float32), [8, -3 + 3])
    assert [len(each) for each in ids] == [0, 0]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="no ranking rule 'median'"):
        make_weights("median", 1)

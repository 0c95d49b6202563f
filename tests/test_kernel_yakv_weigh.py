"""What the keys of runs of blocks weigh, for scores that 16 bits hold and for others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from test_kernel_yakv import BASE, BUDGET, N_KV_HEADS, Slot, indexed_truth, make_slot

from yakvrt.cpu.backend import CpuBackend
from yakvrt.cpu.query_record import scores_by_tables
from yakvrt.cpu.step_memory import StepMemory
from yakvrt.kernels.yakv_attend import attend_yakv_ref
from yakvrt.kernels.yakv_layout import BLOCKS_PER_RUN, YakvShape, indexed_end
from yakvrt.kernels.yakv_select import budget_of

RUN_TOKENS = 64 * BLOCKS_PER_RUN
N_TOKENS = RUN_TOKENS + 4 + 64 * 6
PLAIN = replace(BASE, tail=False)  # attention leaves the sums of blocks alone
IN_STEPS = [PLAIN, replace(PLAIN, group=6, head_dim=128, kind="f16")]
IN_STEPS += [replace(PLAIN, group=1, head_dim=48, selector="1bit", centred=False)]
IN_STEPS += [replace(PLAIN, group=9, head_dim=80)]  # sums with halves, queries in parts
AS_LOGITS = [replace(PLAIN, selector="1.5bit"), replace(PLAIN, rule="mean")]


def memory_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Filled with what a step that is recorded from now on works in, poisoned."""
    kept: dict[str, np.ndarray] = {}
    shared = StepMemory.shared

    def keep(self: StepMemory, name: str, n_bytes: int) -> np.ndarray:
        kept[name] = shared(self, name, n_bytes)
        if name.startswith("yakv_"):
            kept[name].view(np.uint8)[:] = 0xFF
        return kept[name]

    monkeypatch.setattr(StepMemory, "shared", keep)
    return kept


def check(
    monkeypatch: pytest.MonkeyPatch,
    shape: YakvShape,
    spread: float,
    change: Callable[[Slot, np.ndarray], None] | None = None,
) -> None:
    """`change`: of the slot's keys or of the queries, [Hk, G, D]."""
    kept, backend = memory_of(monkeypatch), CpuBackend(2)
    slot = make_slot(backend, shape, N_TOKENS + 8)
    q = np.random.default_rng(2).standard_normal((N_KV_HEADS, shape.group, shape.head_dim), np.float32)
    q *= np.float32(spread)
    if change:
        change(slot, q)
    slot.prompt(0, N_TOKENS)
    slot.decode(N_TOKENS, q)
    backend.close()
    end = indexed_end(N_TOKENS, shape.n_sinks, shape.window)
    n = end - shape.n_sinks
    n_runs, max_runs = -(-n // RUN_TOKENS), -(-(N_TOKENS + 8) // RUN_TOKENS)
    weights = kept["yakv_weights"].view(np.uint16).reshape(N_KV_HEADS, shape.weight_rows, -1)
    weights = weights[:, : shape.group, :n].astype(np.uint32) << 16
    stats = kept["yakv_run_stats"].view(np.float32).reshape(N_KV_HEADS, max_runs, shape.group, 2)
    sums = kept["yakv_block_sums"].view(np.float32).reshape(N_KV_HEADS, shape.group, -1)
    for head in range(N_KV_HEADS):
        mean = slot.k[shape.n_sinks : N_TOKENS, head].mean(axis=0, dtype=np.float64).astype(np.float32)
        truth = indexed_truth(slot, head, mean if shape.centred else None, end, q[head])
        own_weights = weights[head].view(np.float32).astype(np.float64)
        by_block = own_weights.reshape(shape.group, -1, 64).sum(axis=2)
        np.testing.assert_allclose(sums[head, :, : n // 64], by_block, rtol=1e-5)
        assert not sums[head, :, n // 64 : n_runs * BLOCKS_PER_RUN].any()
        for run in range(n_runs):
            own = slice(run * RUN_TOKENS, min((run + 1) * RUN_TOKENS, n))
            references, totals = stats[head, run].T.astype(np.float64)
            np.testing.assert_allclose(own_weights[:, own].sum(axis=1), totals, rtol=1e-5)
            logits = truth.logits[:, own]
            found = np.log(own_weights[:, own]) + references[:, None]
            lowest = np.broadcast_to(logits.max(axis=1, keepdims=True) - 30, logits.shape)
            matters = logits > lowest
            errors = np.abs(found - logits)[matters]
            assert np.median(errors) < 0.003
            # a product that a table rounds the other way than the truth moves few tokens by more
            assert np.quantile(errors, 0.95) < 0.01
            assert (found[~matters] < lowest[~matters] + 1).all()


@pytest.mark.parametrize("shape", [*IN_STEPS, *AS_LOGITS], ids=lambda s: f"{s.selector}-{s.head_dim}")
@pytest.mark.parametrize("spread", [0.03, 1, 5, 12, 20, 80], ids=str)
def test_weights_are_exponentials_of_scores(
    monkeypatch: pytest.MonkeyPatch, shape: YakvShape, spread: float
) -> None:
    check(monkeypatch, shape, spread)


@pytest.mark.parametrize("shape", IN_STEPS, ids=lambda s: f"{s.selector}-{s.head_dim}")
def test_a_key_that_is_long_and_opposed(monkeypatch: pytest.MonkeyPatch, shape: YakvShape) -> None:
    """To the last query, for which it weighs nothing."""

    def change(slot: Slot, q: np.ndarray) -> None:
        slot.k[100] = -200 * shape.head_dim**0.5 * q[:, -1] / (q[:, -1] ** 2).sum(axis=1, keepdims=True)

    check(monkeypatch, shape, 1, change)


def test_scores_that_are_all_far_below_the_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(slot: Slot, q: np.ndarray) -> None:
        mean = slot.k.mean(axis=0)[:, None]
        q -= 90 * slot.shape.head_dim**0.5 * mean / (mean**2).sum(axis=2, keepdims=True)

    check(monkeypatch, replace(PLAIN, centred=False), 0.5, change)


@pytest.mark.parametrize("k_format", ["q4", "r3"])
@pytest.mark.parametrize("level", [-24, 40], ids=str)
def test_attention_whose_logits_lie_far_from_the_guess(k_format: str, level: float) -> None:
    """But not too far: all that reads weights has to bear with references that are no logits."""
    backend, shape = CpuBackend(2), replace(BASE, k_format=k_format, centred=False)
    slot = make_slot(backend, shape, N_TOKENS + 8)
    slot.prompt(0, N_TOKENS)
    q = 0.5 * np.random.default_rng(2).standard_normal((N_KV_HEADS, shape.group, 64), np.float32)
    mean = slot.k.mean(axis=0)[:, None]
    q += (level * 8 - (q * mean).sum(axis=2, keepdims=True)) * mean / (mean**2).sum(axis=2, keepdims=True)
    out = slot.decode(N_TOKENS, q)
    backend.close()
    end = indexed_end(N_TOKENS, shape.n_sinks, shape.window)
    exact = np.r_[0 : shape.n_sinks, end : N_TOKENS + 1]
    for head in range(N_KV_HEADS):
        truth = indexed_truth(slot, head, None, end, q[head])
        k = budget_of(N_TOKENS + 1, end - shape.n_sinks, BUDGET.ratio, BUDGET.at_least, BUDGET.min_len)
        expected, _ = attend_yakv_ref(
            q[head],
            (slot.k[exact, head], slot.v[exact, head]),
            truth.logits,
            (truth.k, truth.v),
            truth.mean_values,
            k,
            shape.rule,
            slot.tail_parts(head),
            residual=k_format == "r3",
        )
        assert np.linalg.norm(out[head] - expected) / np.linalg.norm(expected) < 0.02


@pytest.mark.skipif(not scores_by_tables(), reason="needs permutations of a cycle, as of Zen 4")
@pytest.mark.parametrize(("spread", "guessed"), [(1, True), (80, False)])
def test_what_scores_are_relative_to(monkeypatch: pytest.MonkeyPatch, spread: float, guessed: bool) -> None:
    """A guess for all runs, or the largest score of each."""
    kept, backend = memory_of(monkeypatch), CpuBackend(1)
    slot = make_slot(backend, PLAIN, N_TOKENS + 8)
    slot.prompt(0, N_TOKENS)
    q = np.random.default_rng(2).standard_normal((N_KV_HEADS, PLAIN.group, PLAIN.head_dim), np.float32)
    slot.decode(N_TOKENS, q * np.float32(spread))
    backend.close()
    references = kept["yakv_run_stats"].view(np.float32).reshape(N_KV_HEADS, 2, PLAIN.group, 2)[..., 0]
    assert (references[:, 0] == references[:, 1]).all() == guessed

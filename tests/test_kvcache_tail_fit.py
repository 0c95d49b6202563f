"""YAKV's part of the tail, fitted at the end of a prompt."""

from __future__ import annotations

import numpy as np
import pytest
from kv_slots import KvSlots

from yakvrt.kvcache import open_method
from yakvrt.kvcache.tail_fit import FIT_TOKENS, TailFit
from yakvrt.kvcache.yakv import UNFITTED_PART

HEADS, N_TOKENS = (8, 2, 32), 1000
LITTLE = {"sparse_budget": "16", "min_seqlen_to_prune": "0", "k_bits": "16", "v_bits": "16"}


def rows(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values. Those of head 0 are alike in a block, so that its mean stands for them; those
    of head 1 go with their keys: what gets weight is not the mean.
    """
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((N_TOKENS, heads, HEADS[2])).astype(np.float32) for heads in (8, 2, 2))
    v[4:, 0] = 0.1 * v[4:, 0] + np.repeat(v[4::64, 0], 64, axis=0)[: N_TOKENS - 4]
    v[:, 1] = 0.3 * v[:, 1] + 2 * k[:, 1]
    return q[:n], k[:n], v[:n]


def decode_error(slots: KvSlots, slot: int, n: int, steps: int = 20) -> np.ndarray:
    """Squared distance to exact attention by query head, mean over steps behind a prompt of n tokens."""
    q, k, v = rows(n + steps)
    errors = []
    for i in range(n, n + steps):
        out = slots.decode(slot, i, q[i], k[i], v[i])
        logits = np.einsum("hgd,nhd->hgn", q[i].reshape(2, 4, -1), k[: i + 1]) / np.sqrt(HEADS[2])
        weights = np.exp(logits)
        exact = np.einsum("hgn,nhd->hgd", weights / weights.sum(axis=2, keepdims=True), v[: i + 1])
        errors.append(((out - exact.reshape(8, -1)) ** 2).sum(axis=1))
    mean: np.ndarray = np.mean(errors, axis=0)
    return mean


def fitted(slots: KvSlots, slot: int, n_held: int) -> np.ndarray:
    values = slots.kv.state(slot, n_held)["tail_parts"].values
    return np.ascontiguousarray(values).view(np.float32).reshape(-1)


def test_a_fitted_part_is_nearer_than_any_number_for_all_heads() -> None:
    errors = {}
    for tail in ("fitted", "0", "0.25", "0.5", "1"):
        with KvSlots("yakv", {**LITTLE, "tail": tail}, heads=HEADS, ctx_size=1024) as slots:
            slot = slots.kv.open(1024)
            slots.prefill(slot, 0, *rows(900))
            if tail == "fitted":
                parts = fitted(slots, slot, 900).reshape(2, 4)
                assert parts[0].min() > 0.8
                assert parts[1].max() < 0.5
                assert slots.kv.stats()["steps"] == slots.kv.stats()["rows_read"] == 0
            errors[tail] = decode_error(slots, slot, 900)
    fit = errors.pop("fitted")
    assert all(fit.sum() < error.sum() for error in errors.values())
    # head by head about as near as the best of them, which differs from head to head
    assert (fit < 1.1 * np.min(list(errors.values()), axis=0)).all()


def test_a_prompt_that_cannot_tell_leaves_the_part_alone() -> None:
    with KvSlots("yakv", LITTLE, heads=HEADS, ctx_size=1024) as slots:
        slot = slots.kv.open(1024)
        q, k, v = rows(600)
        slots.prefill(slot, 0, q[:100], k[:100], v[:100])  # nothing is left out yet
        assert (fitted(slots, slot, 100) == np.float32(UNFITTED_PART)).all()
        slots.prefill(slot, 100, q[100:500], k[100:500], v[100:500])
        found = fitted(slots, slot, 500).copy()
        assert (found != UNFITTED_PART).any()
        last = slice(500, 500 + FIT_TOKENS)
        slots.prefill(slot, 500, q[last], k[last], v[last])  # too short to be taken in apart
        np.testing.assert_array_equal(fitted(slots, slot, 500 + FIT_TOKENS), found)
        slots.kv.truncate(slot, 500 + FIT_TOKENS, 300)
        np.testing.assert_array_equal(fitted(slots, slot, 300), found)
        slots.kv.truncate(slot, 300, 0)
        assert (fitted(slots, slot, 0) == np.float32(UNFITTED_PART)).all()


def test_an_interrupted_prompt_leaves_the_parts_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with KvSlots("yakv", LITTLE, heads=HEADS, ctx_size=1024) as slots:
        slot = slots.kv.open(1024)
        q, k, v = rows(700)
        slots.prefill(slot, 0, q[:500], k[:500], v[:500])
        found = fitted(slots, slot, 500).copy()
        monkeypatch.setattr(TailFit, "take_in", interrupted)
        with pytest.raises(KeyboardInterrupt):
            slots.prefill(slot, 500, q[500:], k[500:], v[500:])
        np.testing.assert_array_equal(fitted(slots, slot, 500), found)


def test_a_slot_opened_again_has_forgotten() -> None:
    with KvSlots("yakv", LITTLE, heads=HEADS, ctx_size=1024) as slots:
        slot = slots.kv.open(1024)
        slots.prefill(slot, 0, *rows(500))
        slots.kv.release(slot)
        assert slots.kv.open(1024) == slot
        assert (fitted(slots, slot, 0) == np.float32(UNFITTED_PART)).all()


@pytest.mark.parametrize("tail", ["fit", "2", "nan", "-1"])
def test_a_tail_that_cannot_be(tail: str) -> None:
    with pytest.raises(ValueError, match="tail"):
        open_method("yakv", {"tail": tail})

"""Budgets of methods that read the best pages: those of the prompt that came last, and of nobody else's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden_values import tiny_cases, tiny_dir
from kv_slots import KvSlots

import yakvrt

METHODS = {
    "quest": {"sparse_budget": "0.25", "page": "4", "min_pages": "1", "window": "2", "dense_layers": "0"},
    "arkvale": {
        "sparse_budget": "0.25",
        "cache_budget": "0",
        "page": "4",
        "sinks": "1",
        "window": "2",
        "dense_layers": "0",
    },
    "oracle": {"sparse_budget": "0.25", "sinks": "3", "recent": "9"},
}
HEADS, CTX = (2, 1, 16), 256


def rows(first: int, last: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(5)
    return tuple(rng.standard_normal((CTX, n, 16)).astype(np.float32)[first:last] for n in (2, 1, 1))


def chosen(slots: KvSlots, slot: int, position: int) -> int:
    """Rows that a step asks the host for."""
    before = float(slots.kv.stats()["gross_bytes"])
    slots.decode(slot, position, *(x[0] for x in rows(position, position + 1)))
    return int((float(slots.kv.stats()["gross_bytes"]) - before) / (2 * 16 * 4))


@pytest.fixture(params=METHODS)
def slots(request: pytest.FixtureRequest) -> KvSlots:
    return KvSlots(request.param, METHODS[request.param], heads=HEADS, ctx_size=CTX)


def test_a_budget_is_the_prompts(slots: KvSlots) -> None:
    """Not that of generated tokens, also behind a cut; a cut into the prompt leaves that of the rest."""
    with slots:
        slot = slots.kv.open(CTX)
        slots.prefill(slot, 0, *rows(0, 80))
        assert [chosen(slots, slot, position) for position in range(80, 140, 7)] == [20] * 9
        slots.kv.truncate(slot, 137, 130)
        assert chosen(slots, slot, 130) == 20
        slots.kv.truncate(slot, 131, 48)
        assert chosen(slots, slot, 48) == 12
        slots.prefill(slot, 49, *rows(49, 160))
        assert chosen(slots, slot, 160) == 40


def test_a_slot_begins_without_the_last_ones_budget(slots: KvSlots) -> None:
    """Without a prompt that is one page."""
    with slots:
        for _ in range(2):
            slot, page = slots.kv.open(CTX), slots.kv._method.shape.page
            asked = [chosen(slots, slot, position) for position in range(40)]
            assert asked[0] == 0
            assert asked[-1] == page
            assert {*asked} == {0, page}
            slots.kv.truncate(slot, 40, 0)
            slots.prefill(slot, 0, *rows(0, 120))
            slots.kv.release(slot)


@pytest.mark.parametrize("name", ["quest", "arkvale", "infinigen"])
def test_dense_layers_and_others_share_a_step(name: str) -> None:
    """Of one token on several threads, which keep values of their own: as on one thread, to the bit."""
    found = []
    for threads in (1, 2):
        how: dict[str, Any] = {"kv": name, "kv_args": {"dense_layers": "1"}, "ctx_size": 64}
        with (
            yakvrt.load(str(tiny_dir("llama3")), threads=threads, **how) as engine,
            engine.session() as session,
        ):
            ids = tiny_cases("llama3")[1].ids
            session.prefill(ids[:4])
            found.append(np.array([session.decode(token) for token in ids[4:10]]))
    np.testing.assert_array_equal(*found)

"""Rows foretold from the layer before, counted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

from bench_prefetch import Counted, Head, count

RNG = np.random.default_rng(1)


def test_rows_are_counted_against_a_cache() -> None:
    """The rows used last are held: {2, 3}, then {4, 1}."""
    truth = [frozenset({2, 3}), frozenset({4, 1}), frozenset({1, 2})]
    guessed = [frozenset(), frozenset({4, 3}), frozenset({5, 2})]
    first = Counted(selected=2, right=1, missing=2, covered=1, in_vain=0)
    assert count(truth[:2], guessed[:2], places=2) == first
    assert count(truth, guessed, places=2) == first.plus(Counted(2, 1, 1, 1, 1))
    assert count(truth, guessed, places=0) == Counted(4, 2, 4, 2, 2)


def test_the_likeliest_rows_are_selected() -> None:
    keys = RNG.standard_normal((400, 64)).astype(np.float32)
    keys[4 + 17], keys[4 + 90] = 6 * keys[4 + 17], 5 * keys[4 + 90]
    queries = np.stack([keys[4 + 17], keys[4 + 90]]) / 10
    assert {17, 90} <= Head(keys, 390).selected(queries, 395, 5)

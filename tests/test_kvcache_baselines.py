"""What single methods promise beyond the contract: digests, low rank, proxies, guessed queries, places."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from kv_slots import KvSlots

from yakvrt.cpu.backend import CpuBackend
from yakvrt.cpu.memory import aligned
from yakvrt.cpu.tiled_matrix import TiledMatrix, tiled_bytes
from yakvrt.kernels.chosen_rows import (
    attend_rows,
    group_weights,
    logits,
    page_scores,
    replace_missing,
    softmax,
    top,
)
from yakvrt.kernels.page_digests import page_digests_ref
from yakvrt.kernels.rope import rope_ref, rope_table_ref
from yakvrt.kernels.rope_table import RopeTable
from yakvrt.kernels.select_topk import RULES, select_topk_ref, weights_ref
from yakvrt.kvcache.infinigen import skew_channels
from yakvrt.kvcache.low_rank_keys import LowRankKeys, outlier_chunks
from yakvrt.kvcache.lrqk_factors import INITS, factorise


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


@pytest.mark.parametrize("n", [1, 63, 5000])
def test_attention_over_rows(rng: np.random.Generator, n: int) -> None:
    q, k, v = normal(rng, 2, 3, 32), normal(rng, 2, n, 32), normal(rng, 2, n, 32)
    scaled = np.einsum("hgd,hnd->hgn", q, k)
    np.testing.assert_allclose(logits(q, k), scaled, atol=1e-4)
    np.testing.assert_allclose(logits(q, k.astype(np.float16)), scaled, atol=0.1)
    expected = np.einsum("hgn,hnd->hgd", softmax(scaled / 32**0.5), v)
    np.testing.assert_allclose(attend_rows(q, k, v), expected, atol=1e-5)
    readable = np.zeros((2, n), bool)
    readable[:, n // 2] = True
    only = attend_rows(q, k, v, readable)
    np.testing.assert_allclose(only, np.broadcast_to(v[:, None, n // 2], only.shape), atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_group_rules_are_those_of_the_kernel(rng: np.random.Generator, rule: str) -> None:
    scaled = normal(rng, 2, 3, 50)
    for head in range(2):
        lse = np.log(np.exp(scaled[head].astype(np.float64)).sum(axis=1))
        expected = weights_ref(scaled[head], lse, rule)
        np.testing.assert_allclose(group_weights(scaled, rule)[head], expected, rtol=1e-5, atol=1e-7)


def test_top_takes_the_lowest_of_equal_ids(rng: np.random.Generator) -> None:
    weights = rng.integers(0, 6, (5, 200)).astype(np.float32)
    weights[0, 7] = np.nan
    weights[1] = -np.inf
    for k in (1, 50, 199, 200):
        for row, chosen in zip(weights, top(weights, k), strict=True):
            np.testing.assert_array_equal(chosen, select_topk_ref(np.fmax(row, -np.inf), k))


def test_places_hold_what_is_wanted_and_hits_stay(rng: np.random.Generator) -> None:
    n_ids, n_places = 60, 12
    held = np.full((3, n_places), -1, np.int64)
    table = np.full((3, n_places), -1, np.int64)
    for step in range(50):
        k = min(4 + step, n_places)
        wanted = np.stack([np.sort(rng.choice(n_ids, k, replace=False)) for _ in range(3)])
        keep = normal(rng, 3, n_places)
        before = held.copy()
        heads, places, ids = replace_missing(held, wanted, n_ids, keep)
        table[heads, places] = ids
        np.testing.assert_array_equal(table, held)
        for head in range(3):
            old, new = set(before[head]), set(wanted[head])
            assert new <= set(held[head])
            assert set(ids[heads == head]) == new - old
            stay = [i for i in range(n_places) if before[head, i] in new]
            np.testing.assert_array_equal(held[head, stay], before[head, stay])
            replaced = places[heads == head]
            spared = [i for i in range(n_places) if i not in replaced and before[head, i] not in new]
            filled = [i for i in replaced if before[head, i] >= 0]
            if filled and spared:
                assert keep[head, filled].max() < keep[head, spared].min()
                assert (before[head, spared] >= 0).all()


def test_digests(rng: np.random.Generator) -> None:
    k, q = normal(rng, 2, 96, 16), normal(rng, 2, 3, 16)
    best = logits(q, k).reshape(2, 3, 6, 16).max(axis=-1)
    assert (page_scores(q, page_digests_ref(k, 16, centred=False)) >= best - 1e-5).all()
    single = page_digests_ref(k, 1, centred=True)
    np.testing.assert_allclose(page_scores(q, single), logits(q, k), atol=1e-5)
    corners = page_digests_ref(k, 16, centred=True)
    pages = k.reshape(2, 6, 16, 16)
    centre = (pages.max(axis=2) + pages.min(axis=2)) / 2
    np.testing.assert_allclose((corners[..., :16] + corners[..., 16:]) / 2, centre, atol=1e-6)


def test_keys_of_low_rank(rng: np.random.Generator) -> None:
    left, right = normal(rng, 300, 10), normal(rng, 10, 64)
    k = (left @ right).reshape(300, 2, 32).swapaxes(0, 1)
    heads, positions = np.repeat([0, 1], 5), rng.integers(0, 200, 10)
    for rank, largest in ((10, 0.01), (64, 0.01), (3, 1.0)):
        rows = LowRankKeys.of(k, 200, rank).rows(heads, positions)
        error = np.linalg.norm(rows - k[heads, positions]) / np.linalg.norm(k[heads, positions])
        assert error < largest
    # the best of its rank: as the SVD
    singular = np.linalg.svd(k.swapaxes(0, 1).reshape(300, 64), compute_uv=False)
    low = LowRankKeys.of(k, 300, 3)
    every = np.stack([low.left.astype(np.float32) @ basis.astype(np.float32) for basis in low.basis])
    np.testing.assert_allclose(((every - k) ** 2).sum(), (singular[3:] ** 2).sum(), rtol=0.01)


def test_rope_table_turns_back(rng: np.random.Generator) -> None:
    inv_freq, k = 1000.0 ** -np.linspace(0, 1, 8, endpoint=False), normal(rng, 40, 2, 16)
    turned = rope_ref(k, rope_table_ref(np.arange(40), inv_freq, 1.3)).astype(np.float32)
    table = RopeTable(inv_freq, 1.3, 64)
    np.testing.assert_allclose(table.unrotate(turned.swapaxes(0, 1)), k.swapaxes(0, 1), atol=1e-5)
    np.testing.assert_allclose(table.unrotate(turned[7:].swapaxes(0, 1), 7), k[7:].swapaxes(0, 1), atol=1e-5)
    np.testing.assert_allclose(table.rotate(k[:, 0], np.arange(40)), turned[:, 0], atol=1e-5)
    both = table.rotate(k.swapaxes(0, 1), np.tile(np.arange(40), (2, 1)))
    np.testing.assert_allclose(both, turned.swapaxes(0, 1), atol=1e-5)


def test_outliers_are_the_chunks_unlike_their_mean(rng: np.random.Generator) -> None:
    k = np.repeat(normal(rng, 2, 10, 1, 16), 8, axis=2) + 0.01 * normal(rng, 2, 10, 8, 16)
    k[0, 3, 2] *= -1
    k[1, 7, 5] *= -1
    outliers, others = outlier_chunks(k, k.mean(axis=2), 1)
    assert outliers.tolist() == [[3], [7]]
    assert others.shape == (2, 9)
    assert not (others == outliers).any()
    assert outlier_chunks(k[:, :0], k[:, :0, 0], 0)[1].shape == (2, 0)


@pytest.mark.parametrize("init", INITS)
def test_proxies_of_full_rank_give_the_exact_products(rng: np.random.Generator, init: str) -> None:
    q, k = normal(rng, 3, 80, 16), normal(rng, 3, 80, 16)
    iterations = 30 if init == "randn" else 2
    factors, a_q, a_k = factorise(q, k, 16, iterations, 0.0, init)
    exact = q @ k.swapaxes(1, 2)
    np.testing.assert_allclose(a_q @ a_k.swapaxes(1, 2), exact, atol=0.01 * np.abs(exact).max())
    new_q, new_k = normal(rng, 3, 1, 16), normal(rng, 3, 1, 16)
    q_hat, k_hat = factors.step(new_q, new_k, k[:, :9], a_k[:, :9])
    found, exact = q_hat @ a_k.swapaxes(1, 2), new_q @ k.swapaxes(1, 2)
    np.testing.assert_allclose(found, exact, atol=0.03 * np.abs(exact).max())
    np.testing.assert_allclose(k_hat, factors.project(new_k), atol=0.03 * np.abs(k_hat).max())


def test_proxies_of_low_rank_products(rng: np.random.Generator) -> None:
    turn = np.linalg.qr(normal(rng, 1, 32, 32))[0]
    sizes = np.r_[np.full(6, 3.0), np.full(26, 0.05)].astype(np.float32)
    q, k = normal(rng, 1, 300, 32) * sizes @ turn, normal(rng, 1, 300, 32) * sizes @ turn
    _, a_q, a_k = factorise(q, k, 6, 8, 0.0, "topcol")
    exact = q @ k.swapaxes(1, 2)
    assert np.linalg.norm(a_q @ a_k.swapaxes(1, 2) - exact) < 0.05 * np.linalg.norm(exact)


def test_skew_keeps_products_and_gathers_them(rng: np.random.Generator) -> None:
    turn = np.linalg.qr(normal(rng, 2, 32, 32))[0]
    q = normal(rng, 2, 200, 32) * np.r_[np.full(5, 4.0), np.full(27, 0.1)].astype(np.float32) @ turn
    k = normal(rng, 2, 100, 32)
    whole = skew_channels(q, 32)
    np.testing.assert_allclose((q @ whole) @ (k @ whole).swapaxes(1, 2), q @ k.swapaxes(1, 2), atol=1e-3)
    few = skew_channels(q, 5)
    error = (q @ few) @ (k @ few).swapaxes(1, 2) - q @ k.swapaxes(1, 2)
    assert np.linalg.norm(error) < 0.1 * np.linalg.norm(q @ k.swapaxes(1, 2))


def test_infinigen_chooses_by_the_query_guessed_a_layer_before(rng: np.random.Generator) -> None:
    """Layer 1's own query is zero; what it reads shows what the guess asked for."""
    n, place = 100, 41
    weight = normal(rng, 64, 64)

    def weights(backend: CpuBackend) -> Any:
        matrix = TiledMatrix("F32", 64, 64, 1, aligned(tiled_bytes("F32", 64, 64)))
        backend.repack(matrix, weight.view(np.uint8), np.arange(64))
        return SimpleNamespace(layers=[None, SimpleNamespace(attn_q=matrix)])

    args = {"sparse_budget": "1", "dense_layers": "0", "alpha": "99", "partial": "1"}
    with KvSlots("infinigen", args, n_layers=2, weights=weights) as slots:
        slot = slots.kv.open(512)
        h = normal(rng, 64)
        table = rope_table_ref(np.array([n]), slots.inv_freq, 1.0)
        guess = rope_ref((weight @ h).reshape(1, 4, 16), table)[0].astype(np.float32)
        q, k, v = normal(rng, n, 4, 16), normal(rng, n, 2, 16), normal(rng, n, 2, 16)
        k[place] = guess.reshape(2, 2, 16).sum(axis=1)
        for layer in (0, 1):
            slots.prefill(slot, 0, q, k, v, layer)
        none = np.zeros((4, 16), np.float32)
        new = np.zeros((2, 16), np.float32)
        slots.decode(slot, n, none, new, new, 0, h)
        out = slots.decode(slot, n, none, new, new, 1)
    best = [int(np.argmax(np.max(guess.reshape(2, 2, 16)[head] @ k[:, head].T, axis=0))) for head in (0, 1)]
    assert best == [place, place]
    np.testing.assert_allclose(out, np.repeat(v[place], 2, axis=0) / 2, atol=1e-4)


@pytest.mark.parametrize("name", ["infinigen", "infinigen-equal"])
def test_only_infinigens_own_budget_follows_the_logits(rng: np.random.Generator, name: str) -> None:
    """At equal bytes the number of rows is fixed, however far the logits lie apart."""
    n = 512
    with KvSlots(name, {"dense_layers": "0"}, ctx_size=n + 1) as slots:
        slot = slots.kv.open(n + 1)
        q, k, v = normal(rng, n, 4, 16), normal(rng, n, 2, 16), normal(rng, n, 2, 16)
        slots.prefill(slot, 0, 1000 * q, k, v)
        slots.decode(slot, n, 1000 * q[-1], k[-1], v[-1])
        read = slots.kv.stats()["rows_read"]
    assert read == 2 * ((4 if name == "infinigen-equal" else 1) + 1)


@pytest.mark.parametrize("name", ["arkvale", "shadowkv", "lrqk"])
def test_rows_that_stay_wanted_cross_the_link_once(rng: np.random.Generator, name: str) -> None:
    """The same query twice: the second step moves nothing."""
    args = {"sparse_budget": "32", "dense_layers": "0", "cache_budget": "0", "outliers": "16", "local": "16"}
    known = {
        "arkvale": ("sparse_budget", "dense_layers", "cache_budget"),
        "shadowkv": ("sparse_budget", "outliers", "local"),
        "lrqk": ("sparse_budget",),
    }
    with KvSlots(name, {key: args[key] for key in known[name]}) as slots:
        slot = slots.kv.open(512)
        q, k, v = normal(rng, 300, 4, 16), normal(rng, 300, 2, 16), normal(rng, 300, 2, 16)
        q[-1] *= 10
        slots.prefill(slot, 0, q, k, v)
        moved = []
        for position in (300, 301):
            slots.decode(slot, position, q[-1], 0 * k[0], v[0])
            moved.append(slots.kv.stats()["moved_bytes"])
        if name == "lrqk":  # its proxies move on with every step
            assert moved[1] - moved[0] < 0.2 * (slots.kv.stats()["gross_bytes"] / 2)
        else:
            assert 0 < moved[0] == moved[1]

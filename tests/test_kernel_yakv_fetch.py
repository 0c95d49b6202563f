"""The cache of selected rows: what is resident, where it lies and what is copied, against a plain LRU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kernel_team import KernelTeam, count
from test_kernel_yakv import BASE, BUDGET

from yakvrt.cpu.backend import CpuBackend
from yakvrt.cpu.yakv_pools import YakvPools
from yakvrt.kernels.higgs_layout import row_bytes
from yakvrt.kernels.yakv_fetch import forget_ref, most_selected, yakv_fetch_ref
from yakvrt.kernels.yakv_layout import Budget, YakvShape, indexed_end
from yakvrt.kernels.yakv_select import budget_of

RNG = np.random.default_rng(31)
N_SLOTS, N_KV_HEADS, N_TOKENS = 3, 3, 700


def make_pools(backend: CpuBackend, shape: YakvShape, n_places: int) -> YakvPools:
    staging = replace(
        backend.kv_rows(1, 1, N_KV_HEADS, N_TOKENS, shape.head_dim, shape.kind)[0], slot_bytes=0
    )
    pools = backend.yakv_pools(1, N_SLOTS, N_KV_HEADS, N_TOKENS, shape, BUDGET, [staging], n_places)
    for name in ("rows", "scales"):
        pools._pools[name][:] = RNG.integers(0, 256, pools._pools[name].shape, np.uint8)
    return pools


def rows_at(pool: np.ndarray, stride: int, index: np.ndarray | list[int]) -> np.ndarray:
    """Rows of a pool of one head, whose end may be padding."""
    return pool[: len(pool) // stride * stride].reshape(-1, stride)[index]


class Cache:
    """A cache under test and the truth of every slot and head."""

    def __init__(self, backend: CpuBackend, shape: YakvShape, n_places: int) -> None:
        self.pools, self.n_places, self.n_copied = make_pools(backend, shape, n_places), n_places, 0
        self.row_bytes = row_bytes(shape.head_dim, shape.k_format, shape.v_format)
        self.truth = {
            (slot, head): {-1 - place: place for place in range(n_places)}
            for slot in range(N_SLOTS)
            for head in range(N_KV_HEADS)
        }

    def fetch(self, team: KernelTeam, slots: list[int], ids: list[list[np.ndarray]]) -> None:
        """One step; ids per slot and head."""
        width = self.n_places + 5
        table = np.full((len(slots), N_KV_HEADS, width), -7, np.int32)
        places, counts = table.copy(), np.zeros((len(slots), N_KV_HEADS), np.int64)
        for i, j in np.ndindex(counts.shape):
            counts[i, j] = len(ids[i][j])
            table[i, j, : counts[i, j]] = ids[i][j]
        rows, hits = self.pools.layers[0], self.pools.counted()[1]
        arguments = (rows.table, np.array(slots), count(len(slots)), table, width * 4, counts, places)
        team.run("yakv_fetch", "yakv_fetch_cpu", (self.row_bytes,), *arguments)
        missing = 0
        for (i, j), n in np.ndenumerate(counts):
            expected, missed = yakv_fetch_ref(self.truth[slots[i], j], [int(x) for x in ids[i][j]])
            np.testing.assert_array_equal(places[i, j, :n], expected)
            assert (places[i, j, n:] == -7).all()
            missing += len(missed)
        assert self.pools.counted()[1] - hits == counts.sum() - missing
        self.n_copied += missing

    def check(self) -> None:
        """The resident rows are the truth's, hold the host's bytes, and are linked in the truth's order."""
        pools = {name: pool[0] for name, pool in self.pools._pools.items()}
        for key, truth in self.truth.items():
            words = pools["directory"][key].view(np.int32)
            n_nodes = self.n_places + 1
            links, owners = words[: 2 * n_nodes].reshape(-1, 2), words[2 * n_nodes : 3 * n_nodes]
            nodes = words[3 * n_nodes :]
            if links[0, 0] == 0:  # never used
                assert all(row < 0 for row in truth)
                continue
            order, node = [], links[0, 0]
            while node:
                order.append(node - 1)
                node = links[node, 0]
            assert order == list(truth.values())
            resident = {row: place for row, place in truth.items() if row >= 0}
            assert {int(row): int(nodes[row]) - 1 for row in np.flatnonzero(nodes)} == resident
            assert {int(owners[place + 1]) - 1 for place in resident.values()} == set(resident)
            rows, places = list(resident), list(resident.values())
            for name, stride in (("rows", self.row_bytes), ("scales", 4)):
                cached = rows_at(pools[f"cached_{name}"][key], stride, places)
                np.testing.assert_array_equal(cached, rows_at(pools[name][key], stride, rows))


@pytest.fixture(scope="module")
def backend() -> CpuBackend:
    return CpuBackend(1)


@pytest.mark.parametrize("shape", [BASE, replace(BASE, k_format="q3", v_format="q8")], ids=["64", "96"])
@pytest.mark.parametrize(("n_places", "most"), [(1, 1), (20, 20), (21, 20), (60, 20), (576, 40)])
def test_the_cache_is_a_plain_lru(
    team: KernelTeam, backend: CpuBackend, shape: YakvShape, n_places: int, most: int
) -> None:
    cache, n_rows = Cache(backend, shape, n_places), 576
    favourites = RNG.permutation(n_rows)[: 3 * most]
    for step in range(30):
        slots = [int(slot) for slot in RNG.permutation(N_SLOTS)[: 1 + step % N_SLOTS]]
        ids = []
        for _ in slots:
            n = most if step % 4 else int(RNG.integers(0, most + 1))  # of all heads of a slot
            chosen = [favourites if RNG.random() < 0.7 else np.arange(n_rows) for _ in range(N_KV_HEADS)]
            ids.append([np.sort(RNG.choice(rows, min(n, len(rows)), replace=False)) for rows in chosen])
        cache.fetch(team, slots, ids)
        cache.check()
    assert cache.n_copied > 0


def test_as_many_places_as_rows_hold_the_last_selection(team: KernelTeam, backend: CpuBackend) -> None:
    """Then what a step moves is what the step before did not select."""
    cache, k = Cache(backend, BASE, 25), 25
    old = np.sort(RNG.choice(300, k, replace=False))
    cache.fetch(team, [1], [[old] * N_KV_HEADS])
    for _ in range(10):
        others = np.setdiff1d(np.arange(576), old)
        new = np.sort(np.r_[RNG.choice(old, 15, replace=False), RNG.choice(others, 10, replace=False)])
        before = cache.n_copied
        cache.fetch(team, [1], [[new] * N_KV_HEADS])
        assert cache.n_copied - before == N_KV_HEADS * len(np.setdiff1d(new, old))
        assert all(set(cache.truth[1, head]) == set(new.tolist()) for head in range(N_KV_HEADS))
        cache.check()
        old = new


@pytest.mark.parametrize("n_threads", [1, 2])
def test_rows_that_are_encoded_again_are_forgotten(team: KernelTeam, n_threads: int) -> None:
    """A prompt stored over earlier tokens: its rows leave the cache, the others stay."""
    backend = CpuBackend(n_threads)
    cache, slot = Cache(backend, BASE, 100), 2
    ids = np.arange(0, 320, 4)
    cache.fetch(team, [slot, 0], [[ids] * N_KV_HEADS] * 2)
    held, n = 250, 400  # from block 2 on
    cache.pools.store(0, slot, held, n)
    begin, end = (indexed_end(x, BASE.n_sinks, BASE.window) - BASE.n_sinks for x in (held, n))
    assert 0 < begin < ids[-1] < end
    for head in range(N_KV_HEADS):
        forget_ref(cache.truth[slot, head], begin, end)
    cache.check()
    cache.fetch(team, [slot], [[np.arange(100, 190)] * N_KV_HEADS])
    cache.check()
    backend.close()


@pytest.mark.parametrize("budget", [Budget(32768, 1, 512), Budget(0, 90, 0), Budget(1 << 20, 1, 5), BUDGET])
@pytest.mark.parametrize("n_tokens", [1, 70, 500, 3000])
def test_the_largest_selection(budget: Budget, n_tokens: int) -> None:
    n_sinks, window = 4, 64
    rule = budget.ratio, budget.at_least, budget.min_len
    indexed = [indexed_end(n - 1, n_sinks, window) - n_sinks for n in range(1, n_tokens + 1)]
    selected = [budget_of(n, n_indexed, *rule) for n, n_indexed in enumerate(indexed, 1)]
    assert most_selected(n_tokens, n_sinks, window, budget) == max(selected)
